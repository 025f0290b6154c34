"""When drafts are made: only as long as they pay, for a sequence and for the gang."""

from model.sched.drafting import FIRST_PAUSE, Acceptance, DraftPolicy

PLAIN_US, DRAFTING_US = 1000, 2000


def run(policy: DraftPolicy, num_steps: int, num_decoding: int, num_gained: int) -> list[bool]:
    """Drafts gain `num_gained` tokens in DRAFTING_US, plain steps a token each in PLAIN_US."""
    chosen = []
    for _ in range(num_steps):
        is_drafting = policy.chooses_drafts(num_decoding)
        chosen.append(is_drafting)
        policy.observe(
            num_decoding,
            is_drafting=is_drafting,
            num_gained=num_gained if is_drafting else num_decoding,
            step_us=DRAFTING_US if is_drafting else PLAIN_US,
        )
    return chosen


def test_a_gang_drafts_when_a_drafting_step_gains_more_per_second():
    chosen = run(DraftPolicy(), 400, num_decoding=2, num_gained=6)
    assert sum(chosen) > 0.9 * len(chosen)


def test_a_gang_stops_when_it_gains_less_and_tries_again():
    chosen = run(DraftPolicy(), 2000, num_decoding=2, num_gained=3)
    assert not any(chosen[10:90])
    assert any(chosen[100:]), "never tried again"
    assert sum(chosen) < 0.05 * len(chosen)


def test_sizes_of_batches_are_judged_by_themselves():
    policy = DraftPolicy()
    run(policy, 50, num_decoding=1, num_gained=3)
    run(policy, 50, num_decoding=40, num_gained=50)
    assert policy.chooses_drafts(1)
    assert not policy.chooses_drafts(40)


def test_a_sequence_keeps_the_drafts_that_hold():
    acceptance = Acceptance([1.0, 1.0, 1.0])
    for _ in range(60):
        acceptance.observe(3, 1)
    assert acceptance.wanted() == 1


def test_a_sequence_whose_drafts_fail_pauses_longer_each_time():
    acceptance, pauses = Acceptance([1.0, 1.0, 1.0]), []
    while len(pauses) < 3:
        if acceptance.wanted():
            acceptance.observe(3, 0)
            continue
        num_tokens = 0
        while not acceptance.wanted():
            acceptance.observe(0, 0)
            num_tokens += 1
        pauses.append(num_tokens)
    assert pauses == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
