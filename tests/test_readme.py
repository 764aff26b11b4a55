"""The README's code runs as it is written. Its commands: test_commands.py."""

import re

import pytest

from documented import ROOT, blocks

README = (ROOT / "README.md").read_text()
CODE = [block.text for block in blocks(ROOT / "README.md", "python")]


@pytest.mark.parametrize("code", CODE, ids=["model", "search"])
@pytest.mark.timeout(600)
def test_the_code_runs(code, tmp_path, monkeypatch, capsys, short_searches):
    monkeypatch.chdir(tmp_path)
    code = code.replace("n_simulations=12", "n_simulations=3").replace(
        "torch.randn(64, 3, 224, 224)", "torch.randn(16, 3, 64, 64)"
    )
    exec(compile(code, "README", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z]+)\b", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
