import pytest

from heliograph_site.serving.admission import Limits, admit
from heliograph_site.serving.meter import RING, Meter

LIMITS = Limits(waiting=2)


@pytest.mark.parametrize(
    ("waiting", "restart_in_s", "reason"),
    [(0, 0.0, None), (1, 0.0, None), (2, 0.0, "queue-full"), (0, 0.9, None), (0, 1.0, "worker-restarting"),
     (9, 4.2, "worker-restarting")],
)  # fmt: skip
def test_a_request_is_let_in_while_it_can_be_answered_soon(
    waiting: int, restart_in_s: float, reason: str | None
) -> None:
    refusal = admit("digits", waiting, restart_in_s, LIMITS)
    assert (refusal.reason if refusal else None) == reason
    if refusal:
        assert refusal.retry_after_s >= max(1.0, restart_in_s)


def test_quantiles_speak_of_recent_answers_only() -> None:
    meter = Meter()
    for _ in range(RING):
        meter.answered(10**9)
    for at in range(RING):
        meter.answered(at * 1_000_000)
    assert meter.requests == 2 * RING
    assert meter.latency_ms() == {"p50": RING // 2, "p95": int(0.95 * RING)}


def test_failed_requests_count_and_do_not_enter_the_latency() -> None:
    meter = Meter()
    meter.failed(10**12)
    assert (meter.requests, meter.errors, meter.latency_ms()) == (1, 1, {})
