"""What a hub answers: the names and types on the wire stay, and service, client and OpenAPI agree on them."""

import json
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import LocalHub

from model_opt.errors import HubError, HubRefused, HubUnreachable, WireError
from model_opt.federation.identity import Identity, deployment_identity
from model_opt.federation.signing import sign
from model_opt.federation.stream import Stream
from model_opt.hub.answers import HealthAnswer, NonceAnswer, Page, PushAnswer, RefusalAnswer, StatusAnswer, read
from model_opt.hub.client import HubClient
from model_opt.hub.record_frames import pack
from model_opt.storage.testing import RESNET18, entries

STATUS: dict[str, Any] = {
    "hub": "h",
    "cursor": 4,
    "records": 3,
    "streams": {"a/b": [2, "ff"]},
    "laws": ["ee"],
    "max_body_bytes": 10,
    "max_record_bytes": 5,
}


@pytest.fixture
def alice(tmp_path: Path) -> Identity:
    return deployment_identity(tmp_path / "alice")


def test_the_wire_stays_as_it_is(local_hub: LocalHub, alice: Identity) -> None:
    """Byte for byte what hubs have always answered: older clients read it."""
    hub, stream = "0" * 32, Stream(origin=alice.origin, epoch=alice.epoch)
    first, _, third = (sign(alice, stream.mint(RESNET18, entries(3, first=3 * number))) for number in range(3))
    name = f"{alice.origin}/{alice.epoch}"

    def compact(**said: object) -> bytes:
        return json.dumps(said, separators=(",", ":")).encode()

    with local_hub.client(alice) as client, local_hub.http() as http:
        told = client._ask("POST", "records", pack([first, third, b"no"])).body
        assert told == compact(
            hub=hub,
            cursor=2,
            new=2,
            known=0,
            refused={"not a record of model_opt": 1},
            missing={name: 1},
            quarantined=[],
        )
        _, digest = client.status().streams[name]
        assert client._ask("GET", "status").body == compact(
            hub=hub,
            cursor=2,
            records=2,
            streams={name: [1, digest]},
            laws=[],
            max_body_bytes=8 * 2**20,
            max_record_bytes=2 * 2**20,
        )
        assert http.get("/health").content == compact(status="ok", hub=hub, federations=["local"])
        nonce = http.get("/v1/nonce")
        assert nonce.content == compact(nonce=nonce.json()["nonce"], protocol=1) and len(nonce.json()["nonce"]) == 64
        refused = http.get("/v1/local/status")
        assert refused.status_code == 401
        assert refused.content == compact(error="not_signed", message="the request is not signed")
        page = client._ask("GET", "records?after=1")
        assert (page.headers["hub-cursor"], page.headers["hub-more"]) == ("2", "0")
        assert page.body == (2).to_bytes(8, "little") + len(third).to_bytes(4, "little") + third
        assert client.pull(1) == Page(records=((2, third),), cursor=2, more=False)


def test_what_a_client_makes_of_it() -> None:
    later = json.dumps(STATUS | {"said only by later hubs": [1]}).encode()
    status = read(StatusAnswer, later)
    assert status.streams == {"a/b": (2, "ff")} and status.laws == ("ee",) and status.reached() == {("a", "b"): 2}


def test_openapi_says_the_same(local_hub: LocalHub) -> None:
    with local_hub.http() as http:
        document = http.get("/openapi.json").json()
    answers = {
        ("/health", "get", "200"): HealthAnswer,
        ("/v1/nonce", "get", "200"): NonceAnswer,
        ("/v1/{federation}/status", "get", "200"): StatusAnswer,
        ("/v1/{federation}/records", "post", "200"): PushAnswer,
        ("/v1/{federation}/records", "post", "413"): RefusalAnswer,
        ("/v1/{federation}/records", "get", "401"): RefusalAnswer,
    }
    for (path, method, code), kind in answers.items():
        content = document["paths"][path][method]["responses"][code]["content"]["application/json"]
        schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
        assert list(schema["properties"]) == [field.name for field in fields(kind)] == schema["required"]
    streams = document["components"]["schemas"]["StatusAnswer"]["properties"]["streams"]
    assert [one["type"] for one in streams["additionalProperties"]["prefixItems"]] == ["integer", "string"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"<html>", "no JSON"),
        (b"[]", "no JSON object"),
        (b"[" * 100_000, "no JSON"),
        (b"{}", "'hub' is missing"),
        *(
            (json.dumps(STATUS | {name: value}).encode(), name)
            for name, value in {
                "cursor": "4",
                "records": True,
                "streams": {"a/b": [2]},
                "laws": "ee",
                "max_body_bytes": None,
            }.items()
        ),
    ],
)
def test_what_is_no_answer_is_said_to_be_none(said: bytes, why: str, alice: Identity) -> None:
    with pytest.raises(WireError, match=why):
        read(StatusAnswer, said)
    with answered(alice, lambda _: httpx.Response(200, content=said)) as client:
        with pytest.raises(HubError, match=f"http://hub does not answer as a hub of model_opt: .*{why}"):
            client.status()
        with pytest.raises(HubError, match="does not answer as a hub of model_opt: no page"):
            client.pull(0)


def test_a_refusal_by_somebody_else_is_told_as_it_is(alice: Identity) -> None:
    proxy = answered(alice, lambda _: httpx.Response(403, content=b"a proxy says no"))
    with proxy as client, pytest.raises(HubRefused, match=r"refuses \(403\): a proxy says no"):
        client.status()


def test_a_busy_hub_is_asked_again(alice: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    """After what it asks for and a random wait, which may be twice as long each time."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    said = iter([200, 429, 503, 503, 200])  # the first is the nonce

    def answer(_: httpx.Request) -> httpx.Response:
        headers = {"Replay-Nonce": "0" * 64, "Retry-After": "7"}
        return httpx.Response(next(said), content=json.dumps(STATUS).encode(), headers=headers)

    with answered(alice, answer) as client:
        assert client.status().records == 3
    assert len(waits) == 3 and all(7 <= wait <= 7 + 0.4 * 2**number for number, wait in enumerate(waits))
    waits.clear()
    busy = answered(alice, lambda _: httpx.Response(503, headers={"Retry-After": "100"}))
    with busy as client, pytest.raises(HubUnreachable, match="busy"):
        client.status()
    assert waits == []  # the deadline comes before


def answered(identity: Identity, answer: Callable[[httpx.Request], httpx.Response]) -> HubClient:
    """A client of something that gives this answer."""
    client = HubClient("http://hub", identity)
    client._http.close()
    client._http = httpx.Client(transport=httpx.MockTransport(answer))
    return client
