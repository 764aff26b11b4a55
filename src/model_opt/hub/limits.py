"""What a hub takes: sizes, rates and times."""

from dataclasses import dataclass

from model_opt.errors import InvalidInput
from model_opt.federation.wire import WireLimits


@dataclass(frozen=True, kw_only=True)
class HubLimits:
    """`max_body_bytes` is of one push and about one pull, `max_record_bytes` of one record.

    Rates are requests a second of one origin, and of one address before it has shown who it is; `burst_s` is how many
    seconds' worth may come at once. A nonce is good for `nonce_s`; a request's head has `head_s` to arrive and its body
    `body_s`. `bodies` that have arrived are judged at the same time, others wait; of one origin no more than
    `bodies_of_origin` arrive at once. Of one address there are no more than `connections_of_address`.
    """

    max_body_bytes: int = 8 * 2**20
    max_record_bytes: int = 2 * 2**20
    requests_per_s: float = 20.0
    strangers_per_s: float = 20.0
    burst_s: float = 10.0
    nonce_s: float = 120.0
    head_s: float = 10.0
    body_s: float = 60.0
    bodies: int = 2
    bodies_of_origin: int = 4
    connections: int = 500
    connections_of_address: int = 200

    def __post_init__(self) -> None:
        if not 1024 <= self.max_record_bytes <= self.max_body_bytes - 4:
            raise InvalidInput("a record is at least 1024 bytes, and fits a body")
        times = (self.burst_s, self.nonce_s, self.head_s, self.body_s)
        if min(self.requests_per_s, self.strangers_per_s, *times) <= 0:
            raise InvalidInput("rates and times are above 0")

    @property
    def records(self) -> WireLimits:
        """The decoder's limits."""
        # What describes the rows may take 64 times its bytes in memory.
        return WireLimits(max_bytes=self.max_record_bytes, max_meta_bytes=min(2**18, self.max_record_bytes // 8))
