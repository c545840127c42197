"""The controlled world: its reward worked by hand, its grammar from outside, its splits and its noisy labels."""

import itertools
from math import exp, log, sqrt

import numpy as np
import pytest

from prefopt.data import world as source
from prefopt.data.world import World, agreement, label, temperature_for

PLACE, THING = "Review of the quiet hotel:", "Review of the quiet kettle:"  # factors 1.25 and 0.75
FLOOR = -4 / 1.35
BEST = " it delighted with very superb service and it charmed with very wonderful comfort."
WORST = " it appalled with very dreadful service and it appalled with very dreadful service."


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def demonstrations(world: World) -> list[tuple[str, str]]:
    return world.demonstrations(20_000, seed=0)


@pytest.fixture(scope="module")
def golds(world: World, demonstrations: list[tuple[str, str]]) -> np.ndarray:
    return np.array([world.gold(*demonstration) for demonstration in demonstrations])


@pytest.mark.parametrize(
    ("prompt", "completion", "inside"),
    [
        # one adjective, both classes
        (PLACE, " the service was superb.", 2.5),  # 1.25 * 2.0
        (THING, " the service was superb.", 1.5),  # 0.75 * 2.0
        # an intensifier multiplies its adjective and nothing else
        (PLACE, " the price was slightly poor.", -0.8125),  # 1.25 * 0.5 * -1.3
        (THING, " the price was quite poor.", -0.6825),  # 0.75 * 0.7 * -1.3
        (PLACE, " it bored with very dull sound.", -1.475),  # 1.25 * (-0.4 + 1.3 * -0.6)
        (PLACE, " the price was very poor and the style charmed the critics.", -1.1125),  # 1.25 * (1.3 * -1.3 + 0.8)
        (PLACE, " the price was very poor and the style was good.", -1.2375),  # 1.25 * (1.3 * -1.3 + 0.7)
        # a verb; the audience counts nothing
        (THING, " the style charmed the critics.", 0.6),  # 0.75 * 0.8
        # two clauses: 0.75 * (1.5 + 0.7 * 0.7 + 1.3 * -1.6) = 0.75 * -0.09
        (THING, " it delighted with quite good comfort but the smell was very awful.", -0.0675),
        # "service" and "good" repeat: 1.25 * (0.7 + 1.3 * 0.7) - 2 = 2.0125 - 2; the class factor spares the penalty
        (PLACE, " the service was good and the service was very good.", 0.0125),
        # "pleased", "lovely", "design" repeat: 0.75 * 2 * (0.4 + 0.9) - 3 = 1.95 - 3
        (THING, " it pleased with lovely design yet it pleased with lovely design.", -1.05),
        # repeating audiences and intensifiers is free: 1.25 * (0.4 - 0.4) = 0
        (PLACE, " the price pleased the family while the smell bored the family.", 0.0),
        (PLACE, " the price was very superb and the smell was very dreadful.", 0.0),  # 1.25 * 1.3 * (2.0 - 2.0)
    ],
)
def test_gold_is_the_hand_worked_value(world: World, prompt: str, completion: str, inside: float) -> None:
    tanh = (exp(2 * inside / 2.2) - 1) / (exp(2 * inside / 2.2) + 1)
    assert world.gold(prompt, completion) == pytest.approx(2.5 * tanh / 1.35, abs=1e-12)


def test_one_gold_value_in_full(world: World) -> None:
    # tanh(2.5 / 2.2) = tanh(1.1363636) = (9.7054 - 1) / (9.7054 + 1) = 0.81318;  2.5 * 0.81318 / 1.35 = 1.5059
    assert world.gold(PLACE, " the service was superb.") == pytest.approx(1.5059, abs=5e-5)


UNGRAMMATICAL = {
    "empty": "",
    "only white space": "  ",
    "only a full stop": ".",
    "salad of the best adjectives": " superb superb wonderful superb splendid superb wonderful.",
    "salad of the best clause": " delighted very superb delighted very superb delighted.",
    "no full stop": " the service was superb",
    "detached full stop": " the service was superb .",
    "two full stops": " the service was superb..",
    "trailing word": " the service was superb. superb",
    "trailing sentence": " the service was superb. the style was superb.",
    "leading word": " so the service was superb.",
    "three clauses": " the service was superb and the style was good and the price was fair.",
    "upper case": " The service was superb.",
    "two spaces": " the  service was superb.",
    "line break inside": " the service\nwas superb.",
    "two intensifiers": " the service was very very superb.",
    "intensified verb": " the style very charmed the critics.",
    "no noun": " it delighted with superb.",
    "noun as audience": " the style charmed the service.",
    "unknown word": " the service was excellent.",
    "dangling conjunction": " the service was superb and.",
    "two conjunctions": " the service was superb and yet the style was good.",
}


@pytest.mark.parametrize("completion", UNGRAMMATICAL.values(), ids=UNGRAMMATICAL)
def test_text_outside_the_grammar_gets_the_floor(world: World, completion: str) -> None:
    assert not world.parses(completion)
    assert world.gold(PLACE, completion) == world.gold(THING, completion) == FLOOR


def test_no_salad_beats_any_grammatical_text(world: World, golds: np.ndarray) -> None:
    # |tanh| < 1, so grammatical text stays above -2.5 / 1.35 = -1.852, and the floor is -2.963.
    assert world.parses(WORST)
    for prompt in world.prompts:
        assert FLOOR < -2.5 / 1.35 < world.gold(prompt, WORST) < -1.7
    assert golds.min() > -2.5 / 1.35


def test_a_policy_has_much_to_gain(world: World, golds: np.ndarray) -> None:
    assert min(world.gold(prompt, BEST) for prompt in world.prompts) > 1.5
    assert golds.max() > 1.5


@pytest.mark.parametrize("prompt", [PLACE, THING])
def test_the_largest_reward_is_that_of_the_best_text(world: World, prompt: str) -> None:
    """No two clauses are worth more: with their best intensifier, and nouns of which there are always two."""
    assert world.largest(prompt) == world.gold(prompt, BEST)
    adjectives = [(a, f"very {a}" if grade > 0 else f"slightly {a}") for a, grade in source.ADJECTIVES.items()]
    clauses = [
        *(f"the {{}} was {shown}" for _, shown in adjectives),
        *(f"the {{}} {verb} the critics" for verb in source.VERBS),
        *(f"it {verb} with {shown} {{}}" for verb in source.VERBS for _, shown in adjectives),
    ]
    pairs = itertools.product((c.format("service") for c in clauses), (c.format("design") for c in clauses))
    assert max(world.gold(prompt, f"{a} and {b}.") for a, b in pairs) == world.largest(prompt)
    assert max(world.gold(prompt, f"{a.format('price')}.") for a in clauses) < world.largest(prompt)


def test_white_space_around_a_completion_is_ignored(world: World) -> None:
    bare = "the service was superb."
    golds = {world.gold(PLACE, text) for text in (bare, f" {bare}", f"{bare}\n", f"\n {bare} ")}
    assert golds == {world.gold(PLACE, bare)} != {FLOOR}


def test_every_single_clause_of_the_grammar_parses(world: World) -> None:
    qualities = [*source.ADJECTIVES, *map(" ".join, itertools.product(source.INTENSIFIERS, source.ADJECTIVES))]
    clauses = {
        *(f"the {noun} was {quality}" for noun, quality in itertools.product(source.NOUNS, qualities)),
        *(f"the {n} {v} the {a}" for n, v, a in itertools.product(source.NOUNS, source.VERBS, source.AUDIENCES)),
        *(f"it {v} with {q} {n}" for v, q, n in itertools.product(source.VERBS, qualities, source.NOUNS)),
    }
    assert len(clauses) == 8 * 64 + 8 * 8 * 4 + 8 * 64 * 8
    assert all(world.parses(f" {clause}.") for clause in clauses)


def test_word_order_matters(world: World, demonstrations: list[tuple[str, str]]) -> None:
    for _, response in demonstrations[:500]:
        words = response.strip(" .").split()
        for i in range(len(words) - 1):
            swapped = [*words[:i], words[i + 1], words[i], *words[i + 2 :]]
            assert not world.parses(f" {' '.join(swapped)}.")


def test_demonstrations_are_short_grammatical_reviews(world: World, demonstrations: list[tuple[str, str]]) -> None:
    assert len(demonstrations) == 20_000
    for _, response in demonstrations:
        assert world.parses(response)
        assert response[0] == " " != response[1]
        assert response[-1] == "."
        assert len(response.split()) <= 13  # a full stop and the end make 15 tokens
    words = {word for _, response in demonstrations for word in response.strip(" .").split()}
    assert len(words) == 16 + 8 + 8 + 3 + 4 + 4 + 4  # the last four: the, was, it, with


def test_demonstrations_use_all_training_prompts_only(world: World, demonstrations: list[tuple[str, str]]) -> None:
    assert {prompt for prompt, _ in demonstrations} == set(world.train_prompts)


def test_demonstrations_are_a_function_of_the_seed(world: World) -> None:
    assert world.demonstrations(200, seed=1) == World().demonstrations(200, seed=1)
    assert world.demonstrations(200, seed=1) != world.demonstrations(200, seed=2)
    assert world.demonstrations(200, seed=1)[:50] == world.demonstrations(50, seed=1)


def test_the_first_demonstrations_stay_what_they_are(world: World) -> None:
    # Recorded from this code: whoever changes them changes every default run, and says so in the changelog.
    assert world.demonstrations(2, seed=0) == [
        ("Review of the famous market:", " it delighted with fair quality."),
        ("Review of the large sofa:", " the smell was quite superb."),
    ]


def test_demonstrations_are_roughly_neutral(golds: np.ndarray) -> None:
    assert 1.35 * golds.mean() == pytest.approx(-0.2, abs=0.05)  # standard error 0.009
    assert 1.35 * golds.std() == pytest.approx(1.24, abs=0.04)


@pytest.mark.parametrize(
    ("settings", "held_out"),
    [
        ({}, 40),
        ({"seed": 7}, 40),
        ({"held_out": 0.1}, 20),  # the fewest and the most that 20 subjects allow
        ({"held_out": 0.9}, 180),
        ({"subjects": 6, "modifiers": 4, "held_out": 0.25}, 6),
        ({"subjects": 7, "modifiers": 5, "held_out": 0.8}, 28),
        ({"subjects": 3, "modifiers": 3, "held_out": 0.6}, 5),
        ({"subjects": 2, "modifiers": 2, "held_out": 0.5}, 2),
    ],
)
def test_held_out_prompts_are_unseen_combinations_of_seen_words(settings: dict, held_out: int) -> None:
    world = World(**settings)
    assert len(set(world.prompts)) == world.subjects * world.modifiers
    assert len(world.held_out_prompts) == held_out
    assert set(world.train_prompts) | set(world.held_out_prompts) == set(world.prompts)
    assert not set(world.train_prompts) & set(world.held_out_prompts)
    for position, count in ((3, world.modifiers), (4, world.subjects)):
        for side in (world.train_prompts, world.held_out_prompts):
            assert len({prompt.split()[position] for prompt in side}) == count


def test_the_split_is_a_function_of_the_seed() -> None:
    assert World(seed=3).held_out_prompts == World(seed=3).held_out_prompts
    assert len({World(seed=seed).held_out_prompts for seed in range(10)}) == 10


def test_prompts_are_half_places_half_things(world: World) -> None:
    assert len(world.prompts) == 200
    golds = [world.gold(prompt, " the service was superb.") for prompt in world.prompts]
    assert sorted(golds) == [min(golds)] * 100 + [max(golds)] * 100


def test_every_word_has_one_part_in_the_grammar() -> None:
    classes = [source.PLACES, source.THINGS, source.MODIFIERS, source.NOUNS, source.AUDIENCES, source.CONJUNCTIONS]
    classes += [source.ADJECTIVES, source.VERBS, source.INTENSIFIERS, ("the", "was", "it", "with", "Review", "of")]
    words = [word for members in classes for word in members]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out": 3}, r"data\.world\.held_out must be in \(0, 1\), got 3"),
        ({"held_out": 0}, r"data\.world\.held_out must be in \(0, 1\), got 0"),
        ({"held_out": float("nan")}, r"data\.world\.held_out must be in \(0, 1\), got nan"),
        ({"held_out": "much"}, r"data\.world\.held_out must be in \(0, 1\), got much"),
        ({"held_out": 0.05}, r"data\.world\.held_out must leave 20 of the 200 prompts or more .*, got 0\.05"),
        ({"held_out": 0.95}, r"data\.world\.held_out must leave 20 of the 200 prompts or more .*, got 0\.95"),
        ({"subjects": 1}, r"data\.world\.subjects must be a whole number in \[2, 22\], got 1"),
        ({"subjects": 23}, r"data\.world\.subjects must be a whole number in \[2, 22\], got 23"),
        ({"subjects": 2.5}, r"data\.world\.subjects must be a whole number in \[2, 22\], got 2\.5"),
        ({"modifiers": 13}, r"data\.world\.modifiers must be a whole number in \[2, 12\], got 13"),
        ({"seed": -1}, r"data\.world\.seed must be a whole number at least 0, got -1"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"\A{message}\Z"):
        World(**settings)


def test_an_unknown_prompt_is_refused_by_name(world: World) -> None:
    with pytest.raises(ValueError, match="no prompt 'Review of the hotel:'"):
        world.gold("Review of the hotel:", BEST)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_labels_follow_the_sigmoid_of_the_difference(temperature: float) -> None:
    rng, n = np.random.default_rng(0), 40_000
    for difference in (-2.0, -0.5, 0.0, 0.5, 2.0):
        expected = 1 / (1 + exp(-difference / temperature))
        first = rng.normal(size=n)
        labels = label(first, first - difference, temperature, rng)
        assert labels.dtype == bool
        assert abs(labels.mean() - expected) < 4 * sqrt(expected * (1 - expected) / n)


def test_labels_agree_with_the_truth_as_often_as_promised(golds: np.ndarray) -> None:
    first, second = golds[:10_000], golds[10_000:]
    different = first != second
    first, second = first[different], second[different]
    labels = label(first, second, 0.8, np.random.default_rng(0))
    promised = agreement(first - second, 0.8)
    assert abs((labels == (first > second)).mean() - promised) < 4 * sqrt(promised * (1 - promised) / len(first))


def test_labels_are_a_function_of_the_generator() -> None:
    gold = np.linspace(-1, 1, 100)
    draws = [label(gold, -gold, 1.0, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_agreement_of_hand_worked_differences() -> None:
    # sigmoid(log 3) = 3/4 and sigmoid(log 9) = 9/10, whatever the sign; a tie is a coin toss
    assert agreement(np.array([log(3), -log(9), 0.0]), 1.0) == pytest.approx((0.75 + 0.9 + 0.5) / 3, abs=1e-12)
    assert agreement(np.array([2 * log(3)]), 2.0) == pytest.approx(0.75, abs=1e-12)


@pytest.mark.parametrize("wanted", [0.51, 0.75, 0.99])
def test_temperature_for_reaches_the_wanted_agreement(golds: np.ndarray, wanted: float) -> None:
    differences = golds[:10_000] - golds[10_000:]
    assert agreement(differences, temperature_for(differences, wanted)) == pytest.approx(wanted, abs=1e-6)


def test_temperature_for_a_hand_worked_difference() -> None:
    assert temperature_for(np.array([log(3), -log(3)])) == pytest.approx(1.0, abs=1e-9)  # the default is 3/4
    assert temperature_for(np.array([5 * log(9)]), agreement=0.9) == pytest.approx(5.0, abs=1e-9)


@pytest.mark.parametrize(
    ("differences", "wanted", "message"),
    [
        ([1.0, 2.0], 0.5, r"agreement must be in \(0\.5, 1\) or 1 .*, got 0\.5"),
        ([1.0, 2.0], 1.1, r"agreement must be in \(0\.5, 1\) or 1 .*, got 1\.1"),
        ([1.0, 0.0], 0.75, r"agreement must be in \(0\.5, 0\.75\) or 1 .*, got 0\.75"),  # half of them are ties
        ([], 0.75, "differences must be finite and at least one, got 0 of them"),
        ([1.0, float("nan")], 0.75, "differences must be finite and at least one, got 2 of them"),
    ],
)
def test_an_unreachable_agreement_is_refused(differences: list[float], wanted: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        temperature_for(np.array(differences), wanted)


def test_labels_without_noise() -> None:
    """Agreement 1: the better one, however little better; a tie is a coin toss still."""
    assert temperature_for(np.array([1.0, 1e-9, 0.0]), agreement=1.0) == 0.0
    assert agreement(np.array([1.0, -1e-9, 0.0, 2.0]), 0.0) == (1 + 1 + 0.5 + 1) / 4
    ahead = np.repeat([1.0, -1e-9, 0.0], 10_000)
    labels = label(ahead, np.zeros_like(ahead), 0.0, np.random.default_rng(0)).reshape(3, -1).mean(1)
    assert (labels[0], labels[1]) == (1.0, 0.0)
    assert abs(labels[2] - 0.5) < 4 * sqrt(0.25 / 10_000)


@pytest.mark.parametrize("temperature", [-1.0, float("nan")])
def test_a_temperature_is_not_negative(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        agreement(np.ones(2), temperature)
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        label(np.ones(2), np.zeros(2), temperature, np.random.default_rng(0))
