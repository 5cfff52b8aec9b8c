"""From a recipe's signature to its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from inference.objectives import ELBO, IWAE, Renyi
from ppl.options import UsageError, choice_name, parse


@dataclass(frozen=True)
class Dense:
    hidden: tuple[int, ...] = (20, 20)


@dataclass(frozen=True)
class WithRequired:
    size: int
    rate: float = 0.5


def recipe(
    *,
    objective: ELBO | IWAE | Renyi = ELBO(),
    network: Dense | WithRequired | None = None,
    kind: Literal["none", "threshold"] = "none",
    sizes: tuple[int, ...] = (3, 4),
    steps: int = 5,
    seed: int = 0,
) -> NotDefinedHere:
    """Fit it.

    Parameters
    ----------
    objective
        The bound to maximise.
    steps
        How many.
    """


def options(*arguments, main=recipe):
    return parse(main, arguments, prog="ppl run recipe.py", default_name="recipe")


def test_defaults_are_the_recipes_own():
    values, name = options()
    assert values == {
        "objective": ELBO(),
        "network": None,
        "kind": "none",  # a literal of that name, not None
        "sizes": (3, 4),
        "steps": 5,
        "seed": 0,
    }
    assert name == "recipe"


def test_plain_parameters_are_options_of_their_type():
    values, name = options("--steps", "7", "--sizes", "1", "2", "3", "--kind", "threshold", "--name", "first-try")
    assert values | {"steps": 7, "sizes": (1, 2, 3), "kind": "threshold"} == values
    assert name == "first-try"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--objective", "iwae", "--objective.num-particles", "50"),
        ("--objective.num-particles", "50", "--objective", "iwae"),
        ("--objective=IWAE", "--objective.num-particles=50"),
        ("--objective", "elbo", "--objective", "iwae", "--objective.num-particles", "50"),  # the last one counts
    ],
)
def test_a_choice_and_its_own_options(arguments):
    values, _ = options(*arguments)
    assert values["objective"] == IWAE(num_particles=50)


def test_options_of_the_default_choice_need_no_choice():
    values, _ = options("--objective.num-particles", "3")
    assert values["objective"] == ELBO(num_particles=3)


def test_a_choice_keeps_its_own_defaults():
    values, _ = options("--objective", "renyi", "--objective.alpha", "0.25")
    assert values["objective"] == Renyi(alpha=0.25)


def test_none_and_classes_with_required_fields_are_choices():
    assert options("--network", "none")[0]["network"] is None
    assert options("--network", "dense")[0]["network"] == Dense()
    values, _ = options("--network", "with-required", "--network.size", "3")
    assert values["network"] == WithRequired(3)


def test_a_required_choice():
    def main(*, objective: ELBO | IWAE):
        """Needs one."""

    assert options("--objective", "iwae", main=main)[0]["objective"] == IWAE()
    with pytest.raises(SystemExit) as stopped:
        options(main=main)
    assert stopped.value.code == 2


def test_an_unknown_choice_is_one_line():
    with pytest.raises(UsageError) as error:
        options("--objective", "iwea")
    assert str(error.value) == "--objective is 'iwea'; expected one of: elbo, iwae, renyi."
    with pytest.raises(UsageError, match="--objective is ''"):
        options("--objective")


@pytest.mark.parametrize("arguments", [("--stepps", "7"), ("--steps", "many"), ("--objective.alpha", "0.5")])
def test_other_mistakes_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        options(*arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_help_shows_choices_and_the_options_of_the_chosen_one(capsys):
    with pytest.raises(SystemExit) as stopped:
        options("--objective", "renyi", "--help")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Fit it." in text
    assert "--objective {elbo,iwae,renyi} The bound to maximise. (default: elbo)" in text
    assert "--objective.alpha FLOAT" in text
    assert "How many. (default: 5)" in text
    assert "--name STR" in text


def test_parameters_that_cannot_be_options_are_refused():
    def untyped(*, steps=3): ...

    def reserved(*, name: str = "a"): ...

    def any_number(**options: int): ...

    for main, message in ((untyped, "no type"), (reserved, "rename it"), (any_number, "names of their own")):
        with pytest.raises(UsageError, match=message):
            options(main=main)


@pytest.mark.parametrize(
    ("name", "word"), [("IWAE", "iwae"), ("ScoreFunction", "score-function"), ("DReG", "dreg"), ("MLP", "mlp")]
)
def test_names_of_choices(name, word):
    assert choice_name(type(name, (), {})) == word
