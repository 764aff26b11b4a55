"""The writer of one (origin, epoch): numbers its envelopes and chains them by hash."""

from model_opt.federation.envelope import FIRST, Entries, Envelope, new_epoch, pack_rows
from model_opt.federation.wire import framed
from model_opt.search.model_signature import ModelSignature


class Stream:
    """Mints the envelopes of one origin's epoch. Not for two threads: the chain has one order.

    A stream that goes on after a restart is made with the `sequence` and `previous` of the last envelope that was
    handed out; never mint a number twice.
    """

    def __init__(
        self,
        *,
        origin: str,
        epoch: str | None = None,
        federation: str = "local",
        sequence: int = 0,
        previous: str = FIRST,
    ) -> None:
        """`sequence` and `previous` are those of the last envelope minted; a new epoch is random."""
        self.federation = federation
        self.origin = origin
        self.epoch = epoch or new_epoch()
        self.sequence = sequence
        self.previous = previous

    def mint(self, signature: ModelSignature, entries: Entries) -> Envelope:
        """The next envelope: the cumulative moments of rows that changed. Raises `InvalidInput` for no rows."""
        contexts, block = pack_rows(entries)
        envelope = Envelope(
            federation=self.federation,
            signature=signature,
            contexts=contexts,
            origin=self.origin,
            epoch=self.epoch,
            sequence=self.sequence + 1,
            previous=self.previous,
            block=block,
        )
        self.previous = framed(envelope)[0].digest
        self.sequence += 1
        return envelope
