"""Commands that messages suggest: a shell reads them as they are meant."""

import shlex

import pytest

from nnbuild.store import commands

ROOT = "/srv/my store [old]/it's $HOME"


@pytest.mark.parametrize(
    "suggest", [commands.resume_run, commands.resume_sweep, commands.resume_scoring]
)
def test_resume_command_is_one_shell_command(suggest):
    *_, store = shlex.split(suggest("20200101T000000000Z-abcdef", ROOT))
    assert store == ROOT
