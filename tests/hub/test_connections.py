"""A hub in front of strangers and slow members: whoever says nothing, or little, costs others nothing."""

import contextlib
import json
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import RunningHub, Side

from model_opt.errors import HubError, HubUnreachable
from model_opt.hub.client import HubClient
from model_opt.hub.connections import Connections
from model_opt.hub.credentials import written
from model_opt.hub.limits import HubLimits
from model_opt.hub.serve import _hub_id, members_folder
from model_opt.hub.sync import push
from model_opt.storage.testing import RESNET18, entries

PUSH = "/v1/local/records"


class Silent:
    """A connection as `Connections` sees it."""

    def __init__(self, address: str, guard: Connections) -> None:
        self.address, self.loop, self.closed, self._guard = address, self, False, guard

    def call_later(self, *_: object) -> None:
        """Tests sweep by hand."""

    def hang_up(self) -> None:
        self.closed = True
        self._guard.closed(self)  # type: ignore[arg-type]


def test_who_waited_longest_makes_room() -> None:
    now, said = [0.0], []
    limits = HubLimits(connections=4, connections_of_address=2, head_s=10.0)
    guard = Connections(limits, lambda limit, address: said.append((limit, address)), lambda: now[0])

    def come(address: str) -> Silent:
        now[0] += 1
        one = Silent(address, guard)
        guard.opened(one)  # type: ignore[arg-type]
        return one

    first, second, third = come("a"), come("a"), come("a")
    assert [first.closed, second.closed, third.closed] == [True, False, False] and len(guard) == 2
    guard.is_served(second)  # type: ignore[arg-type]
    fourth = come("a")
    assert third.closed and not second.closed and not fourth.closed, "who is being answered is left alone"
    others = [come(address) for address in "bcd"]
    assert fourth.closed and not any(one.closed for one in others) and len(guard) == 4
    for one in others:
        guard.is_served(one)  # type: ignore[arg-type]
    newest = come("e")
    assert newest.closed and len(guard) == 4, "where nobody waits the newest is turned away"
    guard.waits(second)  # type: ignore[arg-type]
    now[0] += 9
    guard.sweep()
    assert not second.closed
    now[0] += 1
    guard.sweep()
    assert second.closed
    assert said == [("connections_of_address", "a"), ("connections", "a"), ("head_s", "a")], "once a minute each"


def test_half_open_connections_of_a_stranger(hub: RunningHub) -> None:
    held = [socket.create_connection(("127.0.0.1", hub.port)) for _ in range(HubLimits().connections_of_address + 20)]
    try:
        for link in held:
            with contextlib.suppress(OSError):
                link.sendall(b"GET /heal")
        assert [_status(hub) for _ in range(5)] == [200] * 5
        assert {"event": "connection closed", "reason": "connections_of_address"}.items() <= hub.audit()[-1].items()
    finally:
        for link in held:
            link.close()


def _status(hub: RunningHub) -> int:
    with urllib.request.urlopen(f"{hub.url}/health", timeout=20) as answer:
        return int(answer.status)


@pytest.fixture
def dribble(hub: RunningHub) -> Iterator[Callable[[Side], socket.socket]]:
    """Begins a push of a member and sends no body."""
    links: list[socket.socket] = []

    def begin(side: Side) -> socket.socket:
        with urllib.request.urlopen(f"{hub.url}/v1/nonce") as answer:
            nonce = json.load(answer)["nonce"]
        said = written(side.identity, method="POST", target=PUSH, audience=hub.url, nonce=nonce, body=b"x" * 1000)
        links.append(socket.create_connection(("127.0.0.1", hub.port), timeout=30))
        lines = [f"POST {PUSH} HTTP/1.1", "Host: x", f"Authorization: {said}", "Content-Length: 1000", "", ""]
        links[-1].sendall("\r\n".join(lines).encode())
        return links[-1]

    yield begin
    for link in links:
        link.close()


def test_slow_bodies_hold_up_nobody(side: Callable[..., Side], dribble: Callable[[Side], socket.socket]) -> None:
    slow, quick = side("slow"), side("quick")
    limits = HubLimits()
    for _ in range(limits.bodies_of_origin):
        dribble(slow)
    assert limits.bodies_of_origin > limits.bodies
    assert b" 429 " in dribble(slow).recv(200)
    quick.measure((RESNET18, entries(5)))
    with HubClient(quick.url, quick.identity, deadline_s=10, timeout_s=10) as client:
        assert push(quick, client).new == 1


def test_an_allow_list_that_was_cut_short_is_told_and_mended(hub: RunningHub, side: Callable[..., Side]) -> None:
    a = side("a")
    path = members_folder(hub.state, "local") / "trust.json"
    good = path.read_text()
    path.write_text(good[: len(good) // 2])
    with HubClient(a.url, a.identity, deadline_s=1) as client, pytest.raises(HubUnreachable, match="allow-list"):
        client.status()
    assert "cannot be read" in hub.audit()[-1]["reason"] and b"Traceback" not in hub.output()
    path.write_text(good)
    with a.client() as client:
        assert client.status().hub


def test_a_hub_s_damaged_id_is_no_new_one(tmp_path: Path) -> None:
    assert _hub_id(tmp_path) == _hub_id(tmp_path)
    for damaged in (b"", b"\xff" * 32, b"abc"):
        (tmp_path / "hub-id").write_bytes(damaged)
        with pytest.raises(HubError, match="damaged"):
            _hub_id(tmp_path)
