"""Answers of GSM8K and MATH: a table of forms, both scoring rules, and the gold answers of the whole test sets."""

import json
import os
import time
from pathlib import Path

import pytest

from eval.answers import (
    first_number,
    gsm8k_answer,
    gsm8k_equal,
    gsm8k_gold,
    math_answer,
    math_equal,
    math_gold,
)

# completion -> answer by the paper's rule, answer by the release's rule
GSM8K = [
    ("9 * 2 = 18. The answer is: 18.", 18, 18),
    ("The answer is: 18", 18, 18),
    ("the answer is: 18\n", 18, 18),
    ("THE ANSWER IS: 18", 18, 18),
    ("The Answer Is 18 eggs.", 18, 18),
    ("3 ducks lay 6 eggs. The answer is 18.", 18, 3),  # no colon: the release reads from the start
    ("The answer is: 5. Wait. The answer is: 7.", 7, 7),  # several answers: the last
    ("The answer is: 5. Checked: the answer is 7.", 7, 5),  # the release splits at the colon alone
    ("The answer is: -12", -12, -12),
    ("The answer is: −12", -12, 12),  # a Unicode minus
    ("The answer is: –12", -12, 12),  # an en dash
    ("The answer is: 12\\,345", 12345, 12),
    ("The answer is: **18**", 18, 18),
    ("The answer is: +4", 4, 4),
    ("The answer is: $20", 20, 20),
    ("The answer is: -$5", -5, 5),
    ("The answer is: $1,250.00 per year", 1250, 1250),
    ("The answer is: 1,250", 1250, 1250),
    ("The answer is: 1,234,567.", 1234567, 1234),  # the release's number has one separator
    ("The answer is: 1,234.9", 1234.9, 1234),
    ("The answer is: 1{,}250", 1250, 1),
    ("The answer is: 70,000 dollars", 70000, 70000),
    ("The answer is: 3, 4 and 5", 3, 3),
    ("The answer is: 12.5", 12.5, 12),
    ("The answer is: .5", 0.5, 0),
    ("The answer is: 20%", 20, 20),
    ("The answer is: 3/4", 0.75, 1),
    ("The answer is: -3/4", -0.75, -1),
    ("The answer is: 10 / 4", 2.5, 10),
    ("The answer is: \\frac{7}{2}", 3.5, 7),
    ("The answer is: $\\dfrac{7}{2}$", 3.5, 7),
    ("The answer is: \\$18", 18, 18),
    ("The answer is: 4/0", None, 4),
    ("The answer is: 18 cups, not 20", 18, 18),
    ("The answer is: x = 6", 6, 6),
    ("The answer is: eighteen", None, None),
    ("The answer is: ", None, None),
    ("The answer is", None, None),
    ("9 * 2 = 18", None, None),  # no marker at all
    ("", None, None),
    ("Therefore, she makes 18 dollars.", 18, 18),
    ("So, 9 * 2 = 18.", 9, 9),  # the first number after the marker
    ("So, 4 are left. Therefore, 5 remain.", 5, 5),
    ("Therefore, 5 remain. So, 4 are left.", 4, 4),
    ("Therefore she makes 18 dollars.", None, None),  # without the comma it is no marker
    ("So she makes 18 dollars.", None, None),
    ("So, nothing. The answer is: 8", 8, 8),
    ("Also, 8 remain.", None, None),
    ("The answer is: " + "9" * 400, None, None),  # infinite as a float
]


@pytest.mark.parametrize(("text", "paper", "release"), GSM8K)
def test_gsm8k_answer(text, paper, release):
    assert gsm8k_answer(text) == gsm8k_answer(text, "paper") == paper
    assert gsm8k_answer(text, "release") == release


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        (18.0, 18.0, True),
        (18.4, 18.0, True),
        (17.6, 18.0, True),
        (18.6, 18.0, False),
        (-18.0, 18.0, False),
        (None, 18.0, False),
        (0.0, 0.0, True),
        (2.5, 2.0, True),
        (3.5, 4.0, True),
        (1e300, 18.0, False),
    ],
)
def test_gsm8k_equal_rounds(answer, gold, equal):
    assert gsm8k_equal(answer, gold) is equal


def test_gsm8k_gold_is_the_number_after_the_hashes():
    assert gsm8k_gold("She makes 9 * 2 = $<<9*2=18>>18.\n#### 18") == 18
    assert gsm8k_gold("#### 1,000") == 1000
    assert gsm8k_gold("#### -3") == -3
    assert gsm8k_gold("no marker 18") is None


def test_a_very_long_completion_is_read_in_linear_time():
    assert first_number("1," * 200_000 + "x") == 1
    assert gsm8k_answer("the answer is " * 50_000) is None
    assert math_equal("{" * 50_000, "}" * 50_000) is False
    assert math_equal("\\frac" * 20_000, "1") is False
    assert math_equal("9" * 10_000, "9" * 10_000) is True
    begun = time.process_time()
    for text in (
        "\\boxed{" * 250,
        "\\pi" * 500 + "/",
        "9" * 1999 + "/",
        "(" * 1999,
        "a " * 999,
        "1 2/" * 499,
        "\\frac" * 333,
    ):
        assert math_equal(text, "1") is False
    assert time.process_time() - begun < 2


MATH_ANSWERS = [
    ("The answer is: 5", "5"),
    ("The answer is: 5.", "5"),
    ("The answer is: 5.\nI hope it is right.", "5"),
    ("The answer is: 5.\n\nThe problem is solved.", "5"),
    ("We get 3. The answer is: \\frac{1}{2}.\n", "\\frac{1}{2}"),
    ("The answer is: 3.5", "3.5"),
    ("The answer is: 3.5.\n", "3.5"),
    ("The answer is: 1. The answer is: 2.", "2"),
    ("The answer is: x^2 + 1 .\nmore", "x^2 + 1"),
    ("The answer is: \\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}.", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("the answer is: 5", None),  # the rule names the capital
    ("The answer is 5", None),  # and the colon
    ("\\boxed{5}", None),
    ("", None),
]

# Ends of an answer that the release's rule does not see.
MATH_ENDS = [
    ("The answer is: 5.\r\n\r\nI hope this helps.", "5"),
    ("The answer is: 7. I hope it is correct.", "7"),
    ("The answer is: $7$. This is it.", "$7$"),
    ("The answer is: 7\nI hope it is correct.", "7"),
    ("The answer is: 7\n\nbecause of this", "7"),
    ("The answer is: 5</s>", "5"),
    ("The answer is: 5.</s></s>", "5"),
    ("The answer is: 5<|im_end|>\n<|im_start|>user", "5"),
    ("The answer is: 3.5 and 4.5", "3.5 and 4.5"),
    ("The answer is: \\begin{pmatrix}\n1 \\\\\nA\n\\end{pmatrix}", "\\begin{pmatrix}\n1 \\\\\nA\n\\end{pmatrix}"),
    ("The answer is: Dr. X", "Dr. X"),
]


@pytest.mark.parametrize(("text", "answer"), MATH_ENDS)
def test_where_an_answer_ends(text, answer):
    assert math_answer(text) == answer


@pytest.mark.parametrize(("text", "answer"), MATH_ANSWERS)
def test_math_answer(text, answer):
    assert math_answer(text) == math_answer(text, "release") == answer


def test_math_answer_where_the_rules_differ():
    assert math_answer("The answer is:\n5.") == math_answer("The answer is:5") == "5"
    assert math_answer("The answer is:\n5.", "release") is None
    assert math_answer("The answer is: .\n") is None
    assert math_answer("The answer is: .\n", "release") == ""


# a, b, equal by the paper's rule, equal by the release's
MATH_EQUAL = [
    ("5", "5", True, True),
    ("5", "6", False, False),
    (" 5 ", "5", True, True),
    ("\\frac{1}{2}", "\\frac12", True, True),
    ("\\dfrac{1}{2}", "\\frac{1}{2}", True, True),
    ("\\tfrac12", "\\frac{1}{2}", True, True),
    ("\\frac1{72}", "\\frac{1}{72}", True, True),
    ("\\frac{72}1", "\\frac{72}{1}", True, False),
    ("1/2", "\\frac{1}{2}", True, True),
    ("-1/2", "-\\frac{1}{2}", True, False),
    ("0.5", "\\frac{1}{2}", True, True),
    (".5", "\\frac{1}{2}", True, True),
    ("0.25", "\\frac{1}{4}", True, False),
    ("\\frac{-1}{2}", "-\\frac{1}{2}", True, False),
    ("\\frac{2}{4}", "\\frac{1}{2}", True, False),
    ("1\\frac{1}{2}", "\\frac{3}{2}", True, False),
    ("-1\\frac{1}{2}", "-\\frac{3}{2}", True, False),
    ("2\\frac{1}{2}", "1", False, False),
    ("5.0", "5", True, False),
    ("5.", "5", True, False),
    ("1,000", "1000", True, False),
    ("1{,}000", "1000", True, False),
    ("1,\\!000", "1000", True, False),
    ("1,\\!000", "1,000", True, True),
    ("12,34", "1234", False, False),
    ("0.333", "\\frac{1}{3}", False, False),  # exact, not about
    ("\\frac{1}{0}", "\\frac{2}{0}", False, False),
    ("\\sqrt3", "\\sqrt{3}", True, True),
    ("2\\sqrt 3", "2\\sqrt{3}", True, False),
    ("\\sqrt{12}", "2\\sqrt{3}", False, False),  # nothing is simplified
    ("x = 5", "5", True, True),
    ("k=-3", "-3", True, True),
    ("f(x) = x^2", "x^2", True, False),
    ("x \\in [1,2]", "[1,2]", True, False),
    ("5 = x", "5", False, False),
    ("90^\\circ", "90", True, True),
    ("90^{\\circ}", "90", True, True),
    ("90°", "90", True, False),
    ("50\\%", "50", True, True),
    ("50%", "50", True, False),
    ("\\$18.90", "18.90", True, True),
    ("\\$18.90", "18.9", True, False),
    ("$5$", "5", True, False),
    ("$\\frac{1}{2}$.", "\\frac{1}{2}", True, False),
    ("\\(5\\)", "5", True, False),
    ("\\boxed{5}", "5", True, False),
    ("$\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}", True, False),
    ("5\\text{ cm}", "5", True, True),
    ("5\\text{cm}", "5", True, False),
    ("5 \\mbox{ cm}^2", "5", True, False),
    ("5 cm", "5", True, False),
    ("10 square units", "10", True, False),
    ("5 apples", "5", True, False),  # what is counted
    ("5 red apples", "5", True, False),
    ("5 dozen", "5", False, False),  # another number
    ("3 quarters", "3", False, False),
    ("5 million dollars", "5", False, False),
    ("2 pi", "2", False, False),
    ("5 x", "5", False, False),
    ("5 squared", "5", False, False),
    ("1 1/2", "\\frac{11}{2}", False, True),
    ("1 1/2", "1\\frac{1}{2}", True, False),
    ("1 1/2", "\\frac{3}{2}", True, False),
    ("(1 1/2, 2)", "(\\frac{3}{2}, 2)", True, False),
    ("3 5", "35", False, True),  # the release leaves out every space
    ("x^2 3", "x^23", False, True),
    ("\\frac 3 4", "\\frac34", True, True),
    ("12\\,345", "12345", True, False),
    ("1\\,234\\,567", "1,234,567", True, False),
    ("10~000", "10000", True, False),
    ("(1\\,23)", "(123)", False, False),
    ("\\boxed{\\boxed{10}}", "10", True, False),
    ("\\boxed{3}, \\boxed{5}", "3,5", True, False),
    ("\\boxed{3}\\boxed{5}", "35", False, False),
    ("\\fbox{7}", "7", True, False),
    ("x = \\boxed{7}", "7", True, False),
    ("$\\boxed{\\$40}$", "\\$40", True, False),
    ("–5", "-5", True, False),  # en dash
    ("—5", "-5", True, False),
    ("5‑3", "5-3", True, False),
    ("2\\pi/3", "\\frac{2\\pi}{3}", True, False),
    ("-\\pi/4", "\\frac{-\\pi}{4}", True, False),
    ("(1+\\sqrt5)/2", "\\frac{1+\\sqrt{5}}{2}", True, False),
    ("3\\sqrt{3}/4", "\\frac{3\\sqrt{3}}{4}", True, False),
    ("(2\\pi/3, 1)", "(\\frac{2\\pi}{3}, 1)", True, False),
    ("1/2\\pi", "\\frac{1}{2\\pi}", False, False),  # one half of pi, or one over two pi
    ("1+\\pi/3", "\\frac{1+\\pi}{3}", False, False),
    ("x/yz", "\\frac{x}{yz}", False, False),
    ("**5**", "5", True, False),
    ("5**", "5", True, False),
    ("`5`", "5", True, False),
    ("2**3", "23", False, False),
    ("(B)", "B", True, False),
    ("(B)", "\\text{B}", True, False),
    ("(B)", "b", False, False),
    ("(a)", "a", False, False),
    ("Even", "even", True, False),
    ("\\text{Monday}", "monday", True, False),
    ("EVEN", "even", False, False),
    ("AB", "ab", False, False),
    ("X", "x", False, False),
    ("2√3", "2\\sqrt{3}", True, False),
    ("√(x+1)", "\\sqrt{x+1}", True, False),
    ("2√3", "\\sqrt{23}", False, False),
    ("√34", "\\sqrt{3}4", False, False),
    ("2π", "2\\pi", True, False),
    ("[0, ∞)", "[0,\\infty)", True, False),
    ("x²", "x^2", True, False),
    ("x²", "x2", False, False),
    ("½", "0.5", True, False),
    ("99\\pi \\text{ square inches}", "99\\pi", True, True),
    ("\\text{even}", "even", True, False),
    ("\\text{(A)}", "(A)", True, False),
    ("\\mathrm{C}", "C", True, False),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})", True, True),
    ("(1, 0.5)", "(1,\\frac{1}{2})", True, False),
    ("(1,2)", "(2,1)", False, False),
    ("(1,2)", "[1,2]", False, False),
    ("(1,2]", "(1,2]", True, True),
    ("(1,2)", "1,2", False, False),
    ("1,2", "2,1", False, False),  # lists keep their order, as in the release
    ("1, 2", "1,2", True, True),
    ("3 \\text{ and } 5", "3,5", True, False),
    ("3 or 5", "3,5", True, False),
    ("\\{1, 2\\}", "\\{1,2\\}", True, True),
    ("(-\\infty, 2) \\cup (3, \\infty)", "(-\\infty,2)\\cup(3,\\infty)", True, True),
    ("x \\leq 3", "x\\le3", True, False),
    ("x^{2}", "x^2", True, False),
    ("x^{12}", "x^12", False, False),
    ("101_{2}", "101_2", True, False),
    ("\\begin{pmatrix} 1/2 \\\\ 3 \\end{pmatrix}", "\\begin{pmatrix}\\frac{1}{2}\\\\3\\end{pmatrix}", True, False),
    ("\\begin{pmatrix} 1 & 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", False, False),
    ("\\begin{pmatrix} 1 \\\\ -2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\-2 \\end{pmatrix}", True, True),
    ("\\!\\sqrt{33}", "\\sqrt{33}", True, True),
    ("2x+3", "3+2x", False, False),
    ("3x", "3", False, False),
    ("2 \\pi", "2\\pi", True, True),
    ("+5", "5", True, False),
    ("−5", "-5", True, False),
    ("", "5", False, False),
    ("\\frac", "5", False, False),
    ("\\sqrt", "\\sqrt", True, True),
    ("{", "}", False, False),
]


@pytest.mark.parametrize(("a", "b", "paper", "release"), MATH_EQUAL)
def test_math_equal(a, b, paper, release):
    assert math_equal(a, b) is math_equal(b, a) is paper
    assert math_equal(a, b, "release") is math_equal(b, a, "release") is release


def test_none_equals_nothing():
    assert not math_equal(None, "5") and not math_equal("5", None) and not math_equal(None, None)


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        ("So \\boxed{2}.", "2"),
        ("\\boxed{1} or rather \\boxed{\\frac{1}{\\sqrt{2}}}.", "\\frac{1}{\\sqrt{2}}"),
        ("\\fbox{7}", "7"),
        ("\\boxed {3}", "3"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{1", None),
        ("no box", None),
    ],
)
def test_math_gold_is_the_last_box(solution, gold):
    assert math_gold(solution) == gold


def data_file(name: str) -> list[dict]:
    folder = os.environ.get("IMPART_DATA")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"IMPART_DATA names no folder with {name}")
    return [json.loads(line) for line in (Path(folder) / name).read_text().split("\n") if line]


FORMS = ("Some sums. The answer is: {}.\n", "The answer is: {}", "First 3 * 4 = 12.\nThe answer is: {}.")
WRAPPED = (
    "The answer is: ${}$.",
    "The answer is: \\(\\boxed{{{}}}\\).",
    "The answer is: \\boxed{{\\boxed{{{}}}}}",
    "The answer is: **{}**",
    "**The answer is: {}**",
    "The answer is: {}.\r\n\r\nI hope this helps.",
    "The answer is: {}. I hope it is correct.",
    "The answer is: {}</s>",
    "The answer is: {}\n\nSo we are done.",
    "The answer is:\n\\[{}\\]",
)


@pytest.mark.parametrize("form", FORMS)
# The release reads one gold answer with two commas as 1,450.
@pytest.mark.parametrize(("scoring", "missed"), [("paper", []), ("release", ["1,450,000"])])
def test_every_gsm8k_gold_answer_scores(form, scoring, missed):
    solutions = [item["answer"] for item in data_file("gsm8k_test.jsonl")]
    answers = [solution.split("#### ")[1] for solution in solutions]
    wrong = [
        answer
        for answer, solution in zip(answers, solutions, strict=True)
        if not gsm8k_equal(gsm8k_answer(form.format(answer), scoring), gsm8k_gold(solution))
    ]
    assert len(solutions) == 1319 and wrong == missed


@pytest.mark.parametrize("form", FORMS)
def test_every_math_gold_answer_scores(form):
    items = data_file("math_test.jsonl")
    golds = [math_gold(item["solution"]) for item in items]
    assert len(items) == 5000 and None not in golds
    assert [gold for gold in golds if not math_equal(math_answer(form.format(gold)), gold)] == []
    # By the release's rule one does not: its gold answer ends in a full stop, which is cut from the completion alone.
    wrong = [gold for gold in golds if not math_equal(math_answer(form.format(gold), "release"), gold, "release")]
    assert wrong in ([], ["\\frac{7}{5} + \\frac{1}{5} i."])


@pytest.mark.parametrize("form", WRAPPED)
def test_every_gold_answer_scores_in_every_wrapping(form):
    golds = {math_gold(item["solution"]) for item in data_file("math_test.jsonl")}
    assert [gold for gold in golds if not math_equal(math_answer(form.format(gold)), gold)] == []
    numbers = {item["answer"].split("#### ")[1] for item in data_file("gsm8k_test.jsonl")}
    wrong = [one for one in numbers if not gsm8k_equal(gsm8k_answer(form.format(one)), first_number(one))]
    assert wrong == []


def test_math500_agrees_on_the_gold_answers():
    assert all(math_gold(item["solution"]) == item["answer"] for item in data_file("math500_test.jsonl"))


def test_different_gold_answers_stay_different():
    """The rule equates no more than notation: these are all the ways in which 5000 gold answers coincide by number."""
    golds = sorted({math_gold(item["solution"]) for item in data_file("math_test.jsonl")})
    numbers = [gold for gold in golds if math_equal(gold, "25")]
    assert numbers == ["25", "25 \\, \\text{km}", "25 \\text{ ft}", "25\\%", "25^\\circ"]
    assert [gold for gold in golds if math_equal(gold, "\\frac{3}{4}")] == [
        "0.75",
        "\\frac 34",
        "\\frac34",
        "\\frac{3}{4}",
    ]
