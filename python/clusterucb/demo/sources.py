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
class Source:
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
    Source("anagrams", "anagrams/samples.jsonl"),
    Source("balance-equations", "balance_chemical_equation/samples.jsonl"),
    Source("binary-arithmetic", "positive-binary-operations/samples.jsonl"),
    Source("born-first", "born_first/born_first.jsonl"),
    Source("categorise", "categorize_with_distractors/samples.jsonl"),
    Source("country-areas", "compare-countries-area/samples.jsonl"),
    Source("css-explained", "css-selectors/explain.jsonl"),
    Source("css-selectors", "css-selectors/verbal.jsonl"),
    Source("date-arithmetic", "date-calculator/samples.jsonl"),
    Source("date-in-words", "imperial_date_to_string/samples.jsonl"),
    Source("determinants", "determinant/samples.jsonl"),
    Source("escher-sentences", "escher_sentences/samples.jsonl", subtask="sentences"),
    Source("european-dates", "european_date_format_challenge/samples.jsonl"),
    Source("first-letters", "first-letters/samples.jsonl", subtask="words"),
    Source("food", "food/samples.jsonl", subtask="food"),
    Source("formal-logic", "formal_logic/formal_logic_expressions.jsonl"),
    Source("heavier", "which_is_heavier/which_is_heavier.jsonl"),
    Source("indonesian-numbers", "indonesian_numbers/indonesian_numbers.jsonl"),
    Source("largest-country", "largest_country/samples.jsonl"),
    Source("logical-counting", "logical_counting/samples.jsonl"),
    Source("midpoints", "points_on_line/points_on_line.jsonl"),
    Source("missing-operators", "missing_operators/samples.jsonl"),
    Source("next-number", "next-val-series/next-val-series.jsonl"),
    Source("nth-word", "last_word_nth/samples.jsonl", subtask="words"),
    Source("ph-values", "ph_calculation/samples.jsonl"),
    Source("rectangles", "rectangles/samples.jsonl"),
    Source("recurrences", "recurrence-relation/samples.jsonl"),
    Source("scale-modes", "music_theory_scale_modes/samples.jsonl"),
    Source("social-iqa", "theory_of_mind/socialiqa/test.jsonl", terms=CC_BY),
    Source("sort-numbers", "sort_numeric/samples.jsonl"),
    Source("swap-words", "swap-words/samples.jsonl"),
    Source("syllogisms", "logic-statements/logic-statements.jsonl"),
)
