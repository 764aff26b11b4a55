"""The live page's server: read-only, for this machine, with a token beyond it; what changes is pushed."""

import asyncio
import json

import pytest
from made_results import made_result
from starlette.testclient import TestClient

from model_opt.autotuner.progress_log import ProgressLog
from model_opt.errors import InvalidInput
from model_opt.report.live import _events, is_loopback, make_app, serve_live
from model_opt.report.watching import Watching


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ui")
    made_result(8).save(folder / "digits")
    return folder


def watching(home):
    return Watching([home], str(home / "searches"), home / "kb.json")


def client(home, token=None, host="127.0.0.1"):
    app = make_app(watching(home), token=token)
    return TestClient(app, base_url=f"http://{host}", follow_redirects=False)


def test_it_tells_of_searches_and_draws_one(home):
    visitor = client(home)
    (run,) = visitor.get("/api/runs").json()
    assert run["name"] == "digits" and not run["running"] and run["settled"] == 8
    told = visitor.get(f"/api/runs/{run['key']}").json()
    assert set(told["figures"]) >= {"pareto", "rewards", "tree", "timeline"} and "Chosen plan" in told["html"]
    assert visitor.get("/api/runs/0").status_code == 404
    assert "there is nothing here yet" in visitor.get("/api/knowledge").json()["error"]


def test_it_only_reads(home):
    visitor = client(home)
    for path in ("/", "/api/runs", "/api/knowledge", "/events"):
        for method in ("post", "put", "delete", "patch"):
            assert getattr(visitor, method)(path).status_code == 405
    assert visitor.get("/assets/../live.py").status_code == 404
    assert visitor.get("/assets/page.py").status_code == 404


def test_only_names_of_this_machine_are_answered(home):
    assert client(home).get("/").status_code == 200
    assert client(home, host="evil.example").get("/api/runs").status_code == 400


def test_a_token_is_asked_for_and_leaves_the_address(home):
    visitor = client(home, token="secret")
    assert visitor.get("/").status_code == 401 and visitor.get("/?token=wrong").status_code == 401
    opened = visitor.get("/?token=secret")
    assert opened.status_code == 303 and opened.headers["location"] == "/"
    cookie = opened.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    visitor.cookies.set("model_opt_token", "secret")
    assert visitor.get("/").status_code == 200
    assert client(home, token="secret").get("/api/runs", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_beyond_this_machine_a_token_is_needed(home):
    with pytest.raises(InvalidInput, match="a token is needed"):
        serve_live(watching(home), host="0.0.0.0", port=0, token=None, on_ready=print)
    with pytest.raises(InvalidInput, match="no IP address"):
        is_loopback("example.org")
    assert is_loopback("::1") and is_loopback("localhost") and not is_loopback("10.0.0.1")


def test_what_changes_is_pushed(home, tmp_path):
    async def listen():
        made_result(4).save(tmp_path / "old")
        events = _events(watching(tmp_path))
        first = await anext(events)
        log = ProgressLog(tmp_path / "new", {"method": "mcts", "constraints": {}})
        log.on_start(plans=4, budget=3)
        second = await anext(events)
        await events.aclose()
        return first, second

    first, second = (json.loads(text.split("data: ")[1]) for text in asyncio.run(listen()))
    assert [run["name"] for run in first] == ["old"]
    assert [(run["name"], run["running"]) for run in second] == [("new", True), ("old", False)]


def test_a_result_that_cannot_be_read_is_told_not_raised(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/result.json").write_text("{")
    (run,) = client(tmp_path).get("/api/runs").json()
    assert run["state"] == "error" and "not a result" in run["error"]
