"""Generate mathematics: arithmetic questions and answers, equations, word problems, multiple choice.

Knows nothing of models or files. Document i of a seed is always the same text.
"""

import math
import random
from collections.abc import Callable

NAMES = [
    "Ada", "Ahmed", "Alice", "Amara", "Anna", "Ben", "Carlos", "Chen", "Clara", "David", "Elif", "Emma", "Femi",
    "Grace", "Hana", "Hugo", "Ivan", "Jonas", "Karim", "Lea", "Lin", "Lucas", "Maria", "Mei", "Noah", "Nora",
    "Omar", "Paul", "Priya", "Rosa", "Sam", "Sofia", "Tariq", "Tom", "Vera", "Yuki",
]  # fmt: skip
THINGS = [
    "apples", "books", "bottles", "boxes", "buttons", "candles", "cards", "chairs", "coins", "cups", "eggs",
    "flowers", "keys", "lamps", "letters", "marbles", "oranges", "pages", "pencils", "plates", "shells",
    "spoons", "stamps", "stones", "tickets", "tiles",
]  # fmt: skip
PLACES = [
    "at the market", "in the garden", "at school", "on the beach", "in the attic", "at the station",
    "from a neighbour",
]  # fmt: skip


def _sum(rng: random.Random) -> str:
    size = rng.choice((10, 20, 100, 1000))
    a, b = rng.randrange(size), rng.randrange(size)
    sign, value = rng.choice((("+", a + b), ("-", a - b), ("*", a * b if size <= 100 else a * (b % 10))))
    if sign == "*" and size > 100:
        b %= 10
    asked = rng.choice(("What is {}?", "Calculate {}.", "Work out {}.", "{} = ?", "Evaluate {}."))
    return f"Question: {asked.format(f'{a} {sign} {b}')}\nAnswer: {value}\n"


def _equalities(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randint(2, 6)):
        a, b = rng.randrange(1, 100), rng.randrange(1, 100)
        lines.append(
            rng.choice((f"{a} + {b} = {a + b}", f"{a + b} - {b} = {a}", f"{a} * {b} = {a * b}", f"{a * b} / {b} = {a}"))
        )
    return "\n".join(lines) + "\n"


def _steps(rng: random.Random) -> str:
    a, b, c = (rng.randrange(2, 13) for _ in range(3))
    return (
        f"Let us calculate ({a} + {b}) * {c}.\nFirst, {a} + {b} = {a + b}.\n"
        f"Then {a + b} * {c} = {(a + b) * c}.\nThe result is {(a + b) * c}.\n"
    )


def _linear(rng: random.Random) -> str:
    letter, a, x, b = rng.choice("xyznt"), rng.randrange(2, 13), rng.randrange(-12, 13), rng.randrange(1, 30)
    sign, right = rng.choice((("+", a * x + b), ("-", a * x - b)))
    inverse = right - b if sign == "+" else right + b
    return f"Solve {a}{letter} {sign} {b} = {right} for {letter}.\n{a}{letter} = {inverse}\n{letter} = {x}\n"


def _quadratic(rng: random.Random) -> str:
    p, q = rng.randrange(1, 10), rng.randrange(1, 10)
    return f"Solve x^2 - {p + q}x + {p * q} = 0.\n(x - {p})(x - {q}) = 0, so x = {p} or x = {q}.\n"


def _sequence(rng: random.Random) -> str:
    a, d, n = rng.randrange(1, 40), rng.randrange(1, 15), rng.randint(4, 6)
    if rng.random() < 0.7:
        terms = [a + d * i for i in range(n + 1)]
        rule = f"Each term is {d} more than the one before."
    else:
        d = rng.randrange(2, 4)
        terms = [a * d**i for i in range(n + 1)]
        rule = f"Each term is {d} times the one before."
    return f"What comes next: {', '.join(map(str, terms[:-1]))}?\n{rule} The next term is {terms[-1]}.\n"


def _divisors(rng: random.Random) -> str:
    a, b = rng.randrange(4, 200), rng.randrange(2, 60)
    kind = rng.randrange(4)
    if kind == 0:
        return (
            f"What is the greatest common divisor of {a} and {b}?\nThe greatest common divisor is {math.gcd(a, b)}.\n"
        )
    if kind == 1:
        quotient, rest = divmod(a, b)
        answer = f"{a} = {quotient} * {b} + {rest}, so the remainder is {rest}."
        return f"What is the remainder when {a} is divided by {b}?\n{answer}\n"
    if kind == 2:
        factor = next((p for p in range(2, a) if a % p == 0), a)
        verdict = "Yes, it is prime." if factor == a else f"No, because {a} = {factor} * {a // factor}."
        return f"Is {a} a prime number?\n{verdict}\n"
    percent = rng.choice((5, 10, 20, 25, 50, 75))
    return f"What is {percent}% of {b * 20}?\n{percent}% of {b * 20} is {b * 20 * percent // 100}.\n"


def _buying(rng: random.Random) -> str:
    name, thing, place = rng.choice(NAMES), rng.choice(THINGS), rng.choice(PLACES)
    a, b, c = rng.randrange(3, 40), rng.randrange(2, 30), rng.randrange(1, 3)
    had = a + b - c
    return (
        f"{name} has {a} {thing} and gets {b} more {place}. {name} then loses {c} of them. "
        f"How many {thing} does {name} have now?\n"
        f"{name} has {a} + {b} = {a + b} {thing}, and {a + b} - {c} = {had}. The answer is {had}.\n"
    )


def _sharing(rng: random.Random) -> str:
    first, second = rng.sample(NAMES, 2)
    thing, each, groups = rng.choice(THINGS), rng.randrange(2, 13), rng.randrange(2, 10)
    return (
        f"{first} puts {each} {thing} into each of {groups} boxes. {second} brings {each} more {thing}. "
        f"How many {thing} are there altogether?\n"
        f"There are {groups} * {each} = {groups * each} {thing} in the boxes. "
        f"Together that makes {groups * each} + {each} = {groups * each + each}.\n"
    )


def _speed(rng: random.Random) -> str:
    thing, unit = rng.choice((("car", "km"), ("train", "km"), ("cyclist", "km"), ("runner", "km"), ("ship", "miles")))
    speed, hours = rng.randrange(4, 90), rng.randrange(2, 9)
    return (
        f"A {thing} moves at a constant speed of {speed} {unit} per hour. How far does it travel in {hours} hours?\n"
        f"Distance = speed * time = {speed} * {hours} = {speed * hours} {unit}.\n"
    )


def _choice(rng: random.Random) -> str:
    kind = rng.randrange(3)
    a, b = rng.randrange(2, 20), rng.randrange(2, 20)
    asked, unit = (
        (f"A body of mass {a} kg is accelerated at {b} m/s^2. What is the force on it?", " N"),
        (f"A rectangle has sides of {a} cm and {b} cm. What is its area?", " cm^2"),
        (f"A current of {a} A flows through a resistance of {b} ohms. What is the voltage?", " V"),
    )[kind]
    options = [*rng.sample(sorted({a * b, a + b, a * b + a, a * b + 10, abs(a - b) + 1} - {a * b}), 3), a * b]
    rng.shuffle(options)
    listed = "\n".join(f"({letter}) {value}{unit}" for letter, value in zip("ABCD", options, strict=True))
    return f"{asked}\n{listed}\nAnswer: ({'ABCD'[options.index(a * b)]})\n"


KINDS: tuple[Callable[[random.Random], str], ...] = (
    *(_sum, _sum, _sum, _equalities, _steps, _linear, _linear, _quadratic, _sequence),
    *(_divisors, _divisors, _buying, _sharing, _speed, _choice),
)


def mathematics_document(index: int, seed: int = 0, items: int = 24) -> str:
    """One text of `items` problems, each with its answer; a function of (seed, index) alone.

    >>> mathematics_document(7, items=1) == mathematics_document(7, items=1)
    True
    """
    rng = random.Random(f"{seed}/{index}")
    favourite = rng.choice(KINDS)  # half of a document is of one kind, so that documents differ
    return "\n".join((favourite if rng.random() < 0.5 else rng.choice(KINDS))(rng) for _ in range(items))
