"""What every store must do: a conformance suite for stores of your own, run over all of ours.

    class TestMyStore(StoreConformance):
        def open(self, federation: str) -> InspectableStore:
            return MyStore("somewhere", federation=federation)

Every call of `open` makes another object over the same data. Each test works in a federation of its own, so one server
or folder serves them all and nothing has to be cleared. Nothing here needs pytest, though it will be what collects it.
"""

import random
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from model_opt.errors import InvalidInput, StoreConflict, WireError
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import Entries, Envelope, Revocation
from model_opt.federation.join import Knowledge
from model_opt.federation.known import InspectableStore
from model_opt.federation.moments import Moments
from model_opt.federation.row import Row
from model_opt.federation.stream import Stream
from model_opt.federation.wire import encode
from model_opt.search.context import Context
from model_opt.search.model_signature import Family, ModelSignature, Stage
from model_opt.search.plan import Choice, Plan

CONTEXT = Context(
    device="AMD EPYC, avx512_bf16",
    libraries=(("torch", "2.14.1"),),
    dtype="fp32",
    threads=2,
    batch=8,
    input_shapes=((8, 3, 224, 224),),
)
OTHER_CONTEXT = Context(
    device="NVIDIA H100, 570.1, 700 W", libraries=(), dtype="bf16", threads=1, batch=1, input_shapes=((1, 3, 32, 32),)
)


def resnet(blocks: int, parameters: int) -> ModelSignature:
    """The signature of a residual network of basic blocks, about as `sign_model` makes it."""
    convolutions = 2 * blocks + 1
    return ModelSignature(
        family=Family.CNN,
        parameters=parameters,
        layers=convolutions + 1,
        operators={
            "conv_kxk": convolutions,
            "conv1x1": 3,
            "batch_norm": convolutions + 3,
            "relu": blocks + 1,
            "pool": 2,
            "linear": 1,
        },
        stages=tuple(Stage(width=64 * 2**i, layers=blocks // 2, share=0.25) for i in range(4)),
    )


def vit(depth: int, width: int) -> ModelSignature:
    """The signature of a vision transformer."""
    return ModelSignature(
        family=Family.VIT,
        parameters=12 * depth * width * width,
        layers=4 * depth + 2,
        operators={
            "attention": depth,
            "linear": 4 * depth + 1,
            "layer_norm": 2 * depth + 1,
            "gelu": depth,
            "conv_kxk": 1,
        },
        stages=(Stage(width=width, layers=4 * depth, share=1.0),),
    )


RESNET18, RESNET34, RESNET50 = resnet(8, 11_689_512), resnet(16, 21_797_672), resnet(24, 25_557_032)
VIT_B = vit(12, 768)


def plan(**choices: str) -> Plan:
    """A plan of choices by decision."""
    return Plan(tuple(Choice(decision=name, option=option) for name, option in choices.items()))


def entries(
    count: int, samples: int = 1, *, first: int = 0, context: Context = CONTEXT
) -> list[tuple[Plan, Context, dict[str, Moments]]]:
    """`count` rows of different plans, numbered from `first`; each plan's numbers depend only on its own."""
    rows = []
    for number in range(first, first + count):
        source = random.Random(number)
        speedup = Moments.of([source.gauss(0.5, 0.1) for _ in range(samples)])
        size = Moments.of([source.random()])
        choices = plan(prune=str(number % 7), low_rank=str(number // 7 % 11), runtime=f"r{number // 77}")
        rows.append((choices, context, {"log_speedup": speedup, "log_size_ratio": size}))
    return rows


def sorted_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows in the order in which stores hand them out."""
    return sorted(rows, key=lambda row: row.key)


def expected_rows(federation: str, *records: Envelope | Revocation) -> list[Row]:
    """What a store must answer after `records`, by the pure join."""
    known = Knowledge.of(EncodedRecord.of(record) for record in records if record.federation == federation)
    return sorted_rows(known.rows().values())


def must_raise(error: type[Exception], action: Callable[[], object]) -> Exception:
    """The `error` that `action` raises; fails where it raises none."""
    try:
        action()
    except error as raised:
        return raised
    raise AssertionError(f"{error.__name__} was not raised")


class StoreConformance:
    """The suite. Subclass it and write `open`."""

    def open(self, federation: str) -> InspectableStore:
        """Another object over the same data, for `federation`."""
        raise NotImplementedError

    def fresh(self) -> tuple[InspectableStore, str]:
        """A store of a federation that nobody has used, and the federation's name."""
        federation = f"test-{secrets.token_hex(6)}"
        return self.open(federation), federation

    @staticmethod
    def stream(federation: str, origin: str = "alpha") -> Stream:
        """A writer of a new epoch."""
        return Stream(origin=origin, federation=federation)

    def minted(self, federation: str, *batches: Entries, origin: str = "alpha") -> list[Envelope]:
        """One epoch's envelopes of RESNET18."""
        stream = self.stream(federation, origin)
        return [stream.mint(RESNET18, batch) for batch in batches]

    def test_a_new_store_is_empty(self) -> None:
        """Nothing is known, and asking is no error."""
        store, _ = self.fresh()
        assert store.rows() == [] and store.rows(["0" * 32]) == [] and store.rows([]) == []
        assert store.nearest(RESNET18) == []
        assert list(store.envelopes()) == [] and store.origins() == []
        counts = store.counts()
        assert (counts.records, counts.rows, counts.signatures, counts.contexts, counts.origins) == (0, 0, 0, 0, 0)
        store.close()

    def test_rows_come_back_exactly(self) -> None:
        """Rows, signatures and contexts come back bit by bit, and records byte by byte."""
        store, federation = self.fresh()
        rows = [*entries(20, 5), *entries(5, context=OTHER_CONTEXT)]
        (envelope,) = self.minted(federation, rows)
        assert store.append(envelope) == 1
        assert store.rows() == sorted_rows(envelope.rows) == store.rows([RESNET18.key])
        assert [data for _, data in store.envelopes()] == [encode(envelope)]
        assert store.signatures() == {RESNET18.key: RESNET18}
        assert store.contexts() == {context.key: context for context in (CONTEXT, OTHER_CONTEXT)}
        counts = store.counts()
        assert (counts.records, counts.rows, counts.signatures, counts.contexts, counts.origins) == (1, 25, 1, 2, 1)
        store.close()

    def test_appending_twice_changes_nothing(self) -> None:
        """As values or as bytes, in one call or in two."""
        store, federation = self.fresh()
        (envelope,) = self.minted(federation, entries(3))
        assert store.append(encode(envelope), envelope) == 1
        assert store.append(envelope) == 0
        assert store.append(encode(envelope), encode(envelope)) == 0
        assert store.append() == 0
        assert store.rows() == sorted_rows(envelope.rows)
        assert len(list(store.envelopes())) == 1
        store.close()

    def test_the_later_sequence_wins_whatever_the_order(self) -> None:
        """An envelope that arrives late changes no row that a later one has brought."""
        for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
            store, federation = self.fresh()
            envelopes = self.minted(federation, entries(6), entries(4, 3), entries(2, 9, first=3))
            for number in order:
                store.append(envelopes[number])
            assert store.rows() == expected_rows(federation, *envelopes)
            store.close()

    def test_a_contradiction_is_refused(self) -> None:
        """Another envelope in the same place is a conflict, and nothing of the call is kept."""
        store, federation = self.fresh()
        stream = self.stream(federation)
        twin = Stream(origin="alpha", federation=federation, epoch=stream.epoch)
        first, other = stream.mint(RESNET18, entries(3)), twin.mint(RESNET18, entries(4))
        (innocent,) = self.minted(federation, entries(2), origin="beta")
        store.append(first)
        must_raise(StoreConflict, lambda: store.append(innocent, other))
        assert store.rows() == sorted_rows(first.rows)
        assert len(list(store.envelopes())) == 1
        store.close()

    def test_what_is_no_record_is_refused(self) -> None:
        """Garbage, truncated and altered bytes are `WireError`; another federation's are `InvalidInput`."""
        store, federation = self.fresh()
        (envelope,) = self.minted(federation, entries(3))
        data = encode(envelope)
        for bad in (b"", b"garbage", data[:-1], data[:-1] + bytes([data[-1] ^ 1]), data + b"x"):
            must_raise(WireError, lambda bad=bad: store.append(bad))  # type: ignore[misc]
        (foreign,) = self.minted("elsewhere", entries(3))
        must_raise(InvalidInput, lambda: store.append(foreign))
        assert store.rows() == [] and list(store.envelopes()) == []
        store.close()

    def test_rows_of_some_signatures(self) -> None:
        """Only those asked for, in the order of their keys."""
        store, federation = self.fresh()
        stream = self.stream(federation)
        made = [stream.mint(signature, entries(3)) for signature in (RESNET18, RESNET34, VIT_B)]
        store.append(*made)
        wanted = [RESNET34.key, VIT_B.key]
        assert store.rows([*wanted, *wanted]) == sorted_rows([*made[1].rows, *made[2].rows])
        assert store.rows() == sorted_rows(row for envelope in made for row in envelope.rows)
        store.close()

    def test_plans_that_go_on_from_one_another(self) -> None:
        """A plan whose choices are the first of another's is a plan of its own, whichever comes first."""
        for order in ((0, 1, 2), (2, 1, 0)):
            store, federation = self.fresh()
            stream = self.stream(federation)
            _, context, moments = entries(1)[0]
            plans = [plan(a="1", b="2", c="3"), plan(a="1"), plan()]
            made = [stream.mint(RESNET18, [(plans[number], context, moments)]) for number in order]
            for envelope in made:
                store.append(envelope)
            assert store.rows() == expected_rows(federation, *made)
            store.close()

    def test_extreme_numbers_and_names(self) -> None:
        """Counts up to 2⁵³, tiny and huge values, names in any script, a plan that changes nothing, missing metrics."""
        store, federation = self.fresh()
        huge = Moments(n=2**53, mean=1e-300, m2=1e300, min=-1e308, max=1e308)
        zero = Moments(n=1, mean=-0.0, m2=0.0, min=-0.0, max=-0.0)
        odd = Plan(
            (Choice(decision="prune/ä|{}$.'\"", option="½`\\", version=7), Choice(decision="a.b", option="$set"))
        )
        rows: list[tuple[Plan, Context, Mapping[str, Moments]]] = [
            (Plan(), CONTEXT, {"latency_ms": huge}),
            (odd, CONTEXT, {"a.$b|_n": zero, "latency_ms": Moments.of([0.1, 0.2, 0.3])}),
            (odd, OTHER_CONTEXT, {"mean": huge}),
        ]
        (envelope,) = self.minted(federation, rows)
        store.append(envelope)
        assert store.rows() == sorted_rows(envelope.rows)
        store.close()

    def test_nearest_signatures(self) -> None:
        """A resnet34's nearest is a resnet and not a transformer; itself comes first; k is respected."""
        store, federation = self.fresh()
        stream = self.stream(federation)
        known = (VIT_B, RESNET18, vit(24, 1024), RESNET50)
        store.append(*(stream.mint(signature, entries(1)) for signature in known))
        found = store.nearest(RESNET34, 2)
        assert [signature for signature, _ in found] == [RESNET18, RESNET50] or found[0][0] in (RESNET18, RESNET50)
        assert all(signature.family is Family.CNN for signature, _ in found)
        assert found[0][1] >= found[1][1] and abs(found[0][1] - float(found[0][0].vector @ RESNET34.vector)) < 1e-5
        assert store.nearest(VIT_B.vector, 1)[0][0] == VIT_B
        assert len(store.nearest(RESNET34, 10)) == 4
        must_raise(InvalidInput, lambda: store.nearest(np.ones(3, dtype=np.float32)))
        must_raise(InvalidInput, lambda: store.nearest(RESNET34, 0))
        store.append(stream.mint(RESNET34, entries(1)))
        assert store.nearest(RESNET34, 1)[0][0] == RESNET34
        store.close()

    def test_revoking_an_origin(self) -> None:
        """What it said goes, what it says later is ignored, others stay, and the record travels on."""
        store, federation = self.fresh()
        (good,) = self.minted(federation, entries(3), origin="beta")
        stream = self.stream(federation, "liar")
        bad, later = stream.mint(VIT_B, entries(3)), stream.mint(VIT_B, entries(5, 2))
        store.append(good, bad)
        revocation = Revocation(federation=federation, origin="liar", authority="reader", reason="wrong units")
        store.revoke(revocation)
        store.revoke(revocation)
        store.append(later)
        assert store.rows() == sorted_rows(good.rows)
        assert set(store.signatures()) == {RESNET18.key}
        assert [signature for signature, _ in store.nearest(VIT_B)] == [RESNET18]
        assert encode(revocation) in [data for _, data in store.envelopes()]
        assert {summary.origin: summary.revoked for summary in store.origins()} == {"beta": False, "liar": True}
        store.close()

    def test_revoking_from_a_sequence(self) -> None:
        """Earlier rows of the epoch come back, whether the revocation comes first or last."""
        for early in (False, True):
            store, federation = self.fresh()
            envelopes = self.minted(federation, entries(4), entries(4, 3), entries(4, 9))
            revocation = Revocation(
                federation=federation,
                origin="alpha",
                authority="alpha",
                reason="a broken clock",
                epochs={envelopes[0].epoch: 2},
            )
            records: list[Envelope | Revocation] = [*envelopes, revocation]
            for record in reversed(records) if early else records:
                store.append(record)
            assert store.rows() == sorted_rows(envelopes[0].rows)
            store.close()

    def test_federations_do_not_mix(self) -> None:
        """The same origin in another federation is somebody else."""
        (one, ours), (two, theirs) = self.fresh(), self.fresh()
        (envelope,) = self.minted(ours, entries(3))
        (foreign,) = self.minted(theirs, entries(2, context=OTHER_CONTEXT))
        one.append(envelope)
        two.append(foreign)
        one.revoke(Revocation(federation=ours, origin="alpha", authority="alpha", reason="test"))
        assert one.rows() == [] and two.rows() == sorted_rows(foreign.rows)
        assert set(two.contexts()) == {OTHER_CONTEXT.key} and two.counts().records == 1
        one.close()
        two.close()

    def test_another_object_sees_it_all(self) -> None:
        """After closing, from a second object, and while both are open."""
        store, federation = self.fresh()
        first, second = self.minted(federation, entries(4), entries(4, 2))
        store.append(first)
        store.close()
        store.close()
        other = self.open(federation)
        assert other.rows() == sorted_rows(first.rows) == store.rows()
        other.append(second)
        assert store.rows() == sorted_rows(second.rows)
        (foreign,) = self.minted(federation, entries(1, first=9), origin="beta")
        revocation = Revocation(federation=federation, origin="alpha", authority="alpha", reason="test")
        other.append(foreign, revocation)
        assert store.rows() == sorted_rows(foreign.rows)
        assert store.append(second) == 0
        store.close()
        other.close()

    def test_cursors_lead_on(self) -> None:
        """Records are handed out from any cursor on, each once, in an order that does not change."""
        store, federation = self.fresh()
        stream = self.stream(federation)
        envelopes = [stream.mint(RESNET18, entries(1, first=number)) for number in range(450)]
        for start in range(0, 450, 150):
            store.append(*envelopes[start : start + 150])
        told = list(store.envelopes())
        assert [data for _, data in told] == [encode(envelope) for envelope in envelopes]
        assert [cursor for cursor, _ in told] == sorted({cursor for cursor, _ in told})
        assert list(store.envelopes(told[199][0])) == told[200:] and list(store.envelopes(told[-1][0])) == []
        assert store.cursors()[federation, "alpha", stream.epoch].sequence == 450
        store.close()

    def test_gaps_are_noticed(self) -> None:
        """A missing envelope's rows are joined around; the cursor stays before it, and the gap has a name."""
        store, federation = self.fresh()
        one, two, three, four = self.minted(federation, entries(1), entries(2), entries(3), entries(4))
        store.append(one, four)
        at = store.cursors()[federation, "alpha", one.epoch]
        assert (at.sequence, at.missing, at.forked) == (1, ((2, 3),), False)
        assert store.rows() == expected_rows(federation, one, four)
        store.append(three, two)
        assert store.cursors()[federation, "alpha", one.epoch].sequence == 4
        store.close()

    def test_a_large_envelope(self) -> None:
        """Larger than any batch that a back end writes at once."""
        store, federation = self.fresh()
        (envelope,) = self.minted(federation, entries(2500))
        assert store.append(envelope) == 1
        assert store.rows() == sorted_rows(envelope.rows)
        store.close()

    def test_threads_lose_nothing(self) -> None:
        """Several threads over one object, several objects over one place."""
        store, federation = self.fresh()
        other = self.open(federation)
        streams = [self.stream(federation, f"origin-{number}") for number in range(4)]
        made = [[stream.mint(RESNET18, entries(2, first=n)) for n in range(5)] for stream in streams]
        failures: list[Exception] = []

        def write(target: InspectableStore, envelopes: list[Envelope]) -> None:
            try:
                for envelope in envelopes:
                    target.append(envelope)
            except Exception as error:
                failures.append(error)

        pairs = zip((store, other, store, other), made, strict=True)
        threads = [threading.Thread(target=write, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == [], failures
        assert store.rows() == expected_rows(federation, *(envelope for envelopes in made for envelope in envelopes))
        assert store.counts().records == 20 == len(list(other.envelopes()))
        store.close()
        other.close()
