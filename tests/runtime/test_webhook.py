"""Test the webhook against loopback servers that answer anything, or nothing."""

import logging
import time

import pytest
from hostile_text import SECRET, controls
from socket_server import sending, server

from nnbuild.errors import ConfigError
from nnbuild.runtime import webhook
from nnbuild.runtime.webhook import WebhookError

PATH = "/services/T0/5ecre7"


def dripping(start):
    def drip(connection, stopped):
        connection.sendall(start)
        while not stopped.wait(0.05):
            connection.sendall(b"a")

    return drip


ANSWERS = {
    "no HTTP": sending(b"hello, I am no web server\r\n\r\n"),
    "the request again": lambda connection, _: connection.sendall(f"{PATH} \x1b[31m\r\n".encode()),
    "nothing": lambda _, stopped: stopped.wait(30),
    "the end": sending(b""),
    "half a header": sending(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "a header of a byte a moment": dripping(b"HTTP/1.1 200 OK\r\nX: "),
    "a status that is no number": sending(b"HTTP/1.1 OK\r\n\r\n"),
    "binary": sending(bytes(range(256))),
    "too much": sending(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000),
    "a redirect": sending(f"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:1{PATH}\r\n\r\n".encode()),
    "an error": sending(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_webhook_refusal_is_one_line(name):
    began = time.monotonic()
    with server(ANSWERS[name]) as (root, requests), pytest.raises(WebhookError) as caught:
        webhook.post(root + PATH, {"text": "hello"}, timeout=1.0)
    assert len(requests) == 1
    assert time.monotonic() - began < 20  # a dripping server would hold it for ever
    message = str(caught.value)
    assert message.startswith("the webhook at 127.0.0.1 did not take the message: ")
    assert "5ecre7" not in message
    assert not controls(message, allowed="")


@pytest.mark.parametrize("body", [b"x" * 100, None])
def test_webhook_body_is_not_read(body):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    with server(sending(head + body) if body else dripping(head)) as (root, _):
        assert webhook.post(root + PATH, {"text": "hello"}, timeout=20) == 200


def test_webhook_credentials_as_header(caplog):
    caplog.set_level(logging.DEBUG)
    with server(sending(b"HTTP/1.1 204 X\r\n\r\n")) as (root, requests):
        with_credentials = root.replace("://", "://me:pa%40ss@") + PATH
        assert webhook.post(with_credentials, {"text": "hello"}) == 204
    (request,) = requests
    assert request.startswith(f"POST {PATH} HTTP/1.1".encode())
    assert b"Authorization: Basic bWU6cGFAc3M=" in request
    assert "pa%40ss" not in caplog.text
    assert "5ecre7" not in caplog.text


def test_webhook_loopback_skips_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    with server(sending(b"HTTP/1.1 204 X\r\n\r\n")) as (root, _):
        assert webhook.post(root, {"text": "hello"}) == 204


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@127.0.0.1:1/x",
        "http://user:pa ss@127.0.0.1/x",
        "http://:::/",
        "http://[::1/x",
        "http://xn--/x",
        "http://\udcff/x",
        "http:///x",
        "http://127.0.0.1:1/x",
        "http://hooks.example.invalid/x",
        f"http://{'a' * 70}.example.invalid/",
    ],
)
def test_webhook_bad_url_is_one_line(url):
    with pytest.raises(WebhookError) as caught:
        webhook.post(url, {"text": "hello"}, timeout=5)
    message = str(caught.value)
    assert "$NNBUILD_WEBHOOK" in message
    assert not controls(message, allowed="")
    for secret in ("pa@s", "w#rd", "pa ss"):
        assert secret not in message


def test_webhook_set_by_environment(monkeypatch):
    monkeypatch.delenv(webhook.VARIABLE, raising=False)
    assert webhook.configured() is None
    monkeypatch.setenv(webhook.VARIABLE, "user:5ecre7@hooks.example")
    with pytest.raises(ConfigError, match="http://") as caught:
        webhook.configured()
    assert "5ecre7" not in str(caught.value)
    assert "user" not in str(caught.value)
