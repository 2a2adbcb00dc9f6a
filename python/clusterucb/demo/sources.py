"""List the sets of samples that the demo's pool is made of, with their terms.

All sets are in the wheel ``evals``. Its licence is MIT for everything except the data sets that it lists with terms of
their own. The demo uses sets that were written or computed for the wheel (puzzles, drills and small questions; MIT)
and one listed set whose terms ask only for attribution. It leaves out the listed sets with share-alike or
non-commercial terms, and every set that repeats somebody else's exam, book, corpus or benchmark, whatever the wheel
says about it.
"""

from __future__ import annotations

from dataclasses import dataclass

from clusterucb.demo.wheels import Wheel

WHEEL = Wheel(
    "evals",
    "3.0.1.post1",
    sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    size=46,
)
MIT = "MIT, © 2023 OpenAI"
CC_BY = "CC BY 4.0, Social IQA, Sap et al. 2019"
ROOT = "evals/registry/data/"


@dataclass(frozen=True, slots=True)
class DemoSource:
    """A set of samples in the wheel.

    Attributes:
        name: the ``source`` of the set's samples.
        file: the path of the set's JSONL file below `ROOT`.
        subtask: the subtask of the target for which some of the set's samples are held out; "" for none.
        terms: the set's licence.
    """

    name: str
    file: str
    subtask: str = ""
    terms: str = MIT


SOURCES = (
    DemoSource("anagrams", "anagrams/samples.jsonl"),
    DemoSource("balance-equations", "balance_chemical_equation/samples.jsonl"),
    DemoSource("binary-arithmetic", "positive-binary-operations/samples.jsonl"),
    DemoSource("born-first", "born_first/born_first.jsonl"),
    DemoSource("categorise", "categorize_with_distractors/samples.jsonl"),
    DemoSource("country-areas", "compare-countries-area/samples.jsonl"),
    DemoSource("css-explained", "css-selectors/explain.jsonl"),
    DemoSource("css-selectors", "css-selectors/verbal.jsonl"),
    DemoSource("date-arithmetic", "date-calculator/samples.jsonl"),
    DemoSource("date-in-words", "imperial_date_to_string/samples.jsonl"),
    DemoSource("determinants", "determinant/samples.jsonl"),
    DemoSource("escher-sentences", "escher_sentences/samples.jsonl", subtask="sentences"),
    DemoSource("european-dates", "european_date_format_challenge/samples.jsonl"),
    DemoSource("first-letters", "first-letters/samples.jsonl", subtask="words"),
    DemoSource("food", "food/samples.jsonl", subtask="food"),
    DemoSource("formal-logic", "formal_logic/formal_logic_expressions.jsonl"),
    DemoSource("heavier", "which_is_heavier/which_is_heavier.jsonl"),
    DemoSource("indonesian-numbers", "indonesian_numbers/indonesian_numbers.jsonl"),
    DemoSource("largest-country", "largest_country/samples.jsonl"),
    DemoSource("logical-counting", "logical_counting/samples.jsonl"),
    DemoSource("midpoints", "points_on_line/points_on_line.jsonl"),
    DemoSource("missing-operators", "missing_operators/samples.jsonl"),
    DemoSource("next-number", "next-val-series/next-val-series.jsonl"),
    DemoSource("nth-word", "last_word_nth/samples.jsonl", subtask="words"),
    DemoSource("ph-values", "ph_calculation/samples.jsonl"),
    DemoSource("rectangles", "rectangles/samples.jsonl"),
    DemoSource("recurrences", "recurrence-relation/samples.jsonl"),
    DemoSource("scale-modes", "music_theory_scale_modes/samples.jsonl"),
    DemoSource("social-iqa", "theory_of_mind/socialiqa/test.jsonl", terms=CC_BY),
    DemoSource("sort-numbers", "sort_numeric/samples.jsonl"),
    DemoSource("swap-words", "swap-words/samples.jsonl"),
    DemoSource("syllogisms", "logic-statements/logic-statements.jsonl"),
)
