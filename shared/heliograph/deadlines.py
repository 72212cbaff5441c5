"""How long anything may take, in one table. Only what a node does alone can fail by time; the road is waited out.

Values are seconds. Tests shorten them by making a `Deadlines` of their own; nothing else in the code names a timeout of
the protocol.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Source: contracts, "Deadlines"."""

    offer_s: float = 60.0  # no offer: ask again, with back-off
    chunk_base_s: float = 5.0  # plus chunk_rtts * RTT without any chunk: probe the link
    chunk_rtts: float = 4.0
    activation_s: float = 60.0  # worker loads and golden outputs agree, else refused
    rollback_s: float = 60.0  # else the next fallback
    receipt_s: float = 30.0  # else the records are sent again
    check_in_s: float = 900.0  # hello again though nothing happened
    report_wait_s: float = 60.0  # checking and fetching say what they wait for
    reply_s: float = 30.0  # no reply to hello: hello again
    publish_s: float = 30.0  # a QoS 1 publish unanswered on a live link: reconnect
    enroll_s: float = 30.0  # `node join` gives up waiting for the hub
    token_s: float = 7 * 86400.0  # longest life of an enrolment token
    session_s: float = 86400.0  # a connection with TLS is made anew: the broker looks at certificates only then
    silent_check_ins: int = 2  # a node unheard for so many check-ins counts as silent


DEADLINES = Deadlines()
