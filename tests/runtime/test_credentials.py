"""Test credentials in URLs: masked in any text, and refused in settings."""

import pytest
from command_line import call
from hostile_text import SECRET
from hypothesis import given
from hypothesis import strategies as st

import nnbuild
from nnbuild.errors import ConfigError
from nnbuild.runtime.credentials import has_credentials, mask_credentials, split_credentials
from nnbuild.scoring import ScoreConfig
from nnbuild.store import Store

WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
PASSWORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=4, max_size=20
).filter(lambda text: not any(each.isspace() for each in text))
SCHEMES = st.sampled_from(["http", "https", "s3", "postgresql+psycopg", "sftp", "abfs"])
PARAMETERS = st.sampled_from(
    ["token", "sig", "X-Amz-Signature", "X-Amz-Credential", "key", "password", "api_key", "PWD"]
)


@given(SCHEMES, WORDS, PASSWORDS, WORDS, st.sampled_from(["", "/x", "/x?a=b", ":80/x#y"]))
def test_password_is_masked_within_any_text(scheme, user, password, host, tail):
    url = f"{scheme}://{user}x:Z{password}Z@{host}.example{tail}"
    shown = mask_credentials(f"cannot read {url}, see the log")
    assert f"Z{password}Z" not in shown
    assert shown.startswith(f"cannot read {scheme}://***@{host}.example")
    assert shown.endswith(f"{tail}, see the log")
    assert mask_credentials(shown) == shown
    assert has_credentials(url)


@given(WORDS, PARAMETERS, st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=9))
def test_secret_parameter_is_masked(host, name, secret):
    shown = mask_credentials(f"GET https://{host}.example/x?a=1&{name}={secret}&b=2 failed")
    assert secret not in shown
    assert shown == f"GET https://{host}.example/x?a=1&{name}=***&b=2 failed"


@given(st.text())
def test_masking_is_idempotent(text):
    shown = mask_credentials(text)
    assert mask_credentials(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:9000/bucket/a@b.parquet",
        "http://[::1]:4200/api a@b",
        "http://host.example/x?mail=a@b.example",
        "s3://bucket/folder@v2/x:y@z",
        "abfs://container@account.dfs.core.windows.net/x",
        "a@b.example: 3 of 4 images, monkey=1",
        "sqlite:////home/me@work/study.db",
    ],
)
def test_text_without_credentials_stays(text):
    assert mask_credentials(text) == text
    assert not has_credentials(text)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"s3://user:{SECRET}@bucket/x", "s3://***@bucket/x"),
        ("https://TOKEN@host/x", "https://***@host/x"),
        ("http://me@corp.example:pa/ss@host/x", "http://***@host/x"),
        ("http://:pw@host", "http://***@host"),
        ("https:/user:pw@host/x", "https:/***@host/x"),
        ("simplecache::s3://k:s@bucket/x", "simplecache::s3://***@bucket/x"),
        ("http://u:p%40%2F@h:8/x?sig=a%2Fb#c", "http://***@h:8/x?sig=***"),
        ("'http://u:p@h/x', 'http://v:q@k'", "'http://***@h/x', 'http://***@k'"),
    ],
)
def test_each_form_is_masked(url, shown):
    assert mask_credentials(url) == shown


def test_masking_takes_linear_time():
    for text in ("a" * 10**6 + "://", "://" * 10**5, "://a:" * 10**5 + "@", "?" * 10**6):
        mask_credentials(text)


@given(WORDS, PASSWORDS)
def test_split_credentials_decodes(user, password):
    from urllib.parse import quote

    url = f"https://{user}:{quote(password, safe='')}@host.example:8443/x?y=z"
    assert split_credentials(url) == ("https://host.example:8443/x?y=z", (user, password))


@pytest.mark.parametrize(
    "url", [f"http://user:{SECRET}@host/x", "http://u:a/b@host", "http://u:a@b@host", "http://a b"]
)
def test_ambiguous_credentials_are_refused(url):
    with pytest.raises(ValueError, match="percent-encode"):
        split_credentials(url)


URL = f"s3://user:{SECRET}@bucket/x"
PRESIGNED = "https://bucket.example/x.parquet?X-Amz-Signature=5ecre7"


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["runs", "--store", URL], "AWS_SECRET_ACCESS_KEY"),
        (["run", "--store", URL], "AWS_SECRET_ACCESS_KEY"),
        (["serve", "--store", URL], "AWS_SECRET_ACCESS_KEY"),
        (["run", "--store", f"sftp://user:{SECRET}@host/x"], "FSSPEC_SFTP_PASSWORD"),
        (["score", "--input", URL], "AWS_SECRET_ACCESS_KEY"),
        (["score", "--input", PRESIGNED], "download the file"),
        (["score", "--input", "x.npz", "--output", URL], "AWS_SECRET_ACCESS_KEY"),
        (["serve", "--score-input", URL], "AWS_SECRET_ACCESS_KEY"),
        (["run", "--dataset", f"https://user:{SECRET}@host/x.npz"], "download the file"),
        (["run", "--data-dir", f"https://user:{SECRET}@host/x.npz"], "download the file"),
        (["run", "--mlflow", f"postgresql://user:{SECRET}@host/x"], "percent-encode"),
        (["run", "--mlflow", f"file://user:{SECRET}@host/x"], "expected a database or a server"),
        (
            [
                *("sweep", "--search", "training.learning_rate=0.01..0.1"),
                *("--storage", f"postgresql://user:{SECRET}@host/x"),
            ],
            "PGPASSWORD",
        ),
    ],
)
def test_credentials_refused_in_one_line(capfd, tmp_path, monkeypatch, arguments, advice):
    monkeypatch.chdir(tmp_path)
    outcome = call(capfd, *arguments)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert advice in outcome.err
    for piece in (SECRET, "w#rd", "5ecre7", "user:"):
        assert piece not in outcome.err + outcome.out
    assert list(tmp_path.iterdir()) == []


def test_credentials_in_environment_refused(monkeypatch):
    monkeypatch.setenv("NNBUILD_STORE", URL)
    with pytest.raises(ConfigError, match="with credentials") as caught:
        Store()
    assert SECRET not in str(caught.value)


def test_api_url_with_credentials_is_refused(capfd, tmp_path):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: f"http://user:{SECRET}@127.0.0.1:9/api"}):
        outcome = call(capfd, "run", "--dataset", "digits", "--store", tmp_path / "store")
    assert outcome.code == 2
    assert "PREFECT_API_AUTH_STRING" in outcome.err
    assert SECRET not in outcome.err


def test_settings_credentials_are_refused():
    for settings in ({"dataset": {"name": URL}}, {"dataset": {"data_dir": PRESIGNED}}):
        with pytest.raises(ConfigError, match="credentials"):
            nnbuild.RunConfig.model_validate(settings)
    with pytest.raises(ConfigError, match="keep"):
        ScoreConfig.model_validate({"input": "x", "keep": ["a", URL]})
