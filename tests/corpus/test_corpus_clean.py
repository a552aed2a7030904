from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.corpus import CorpusSettings, clean, is_heldout, langid
from danlu.corpus.audit import redact
from danlu.corpus.template import Template, as_text


@given(st.text(st.characters(codec=None)))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = clean.normalise(text)
    assert clean.normalise(once) == once
    once.encode("utf-8")


def test_normalise() -> None:
    assert clean.normalise(" a\r\nb\rc\u2028d\x00\x07\ufeff e\u0301\ud800\t\n") == "a\nb\nc\nd é\ufffd"


def test_spring_dawn_in_simplified() -> None:
    texts = ["春曉", "春眠不覺曉，處處聞啼鳥。\n夜來風雨聲，花落知多少。", "", "plain"]
    simple = ["春晓", "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。", "", "plain"]
    assert clean.simplify(texts) == simple
    assert clean.simplify([]) == []
    assert clean.simplify(simple) == simple


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("春眠不觉晓，处处闻啼鸟。", "zh"),
        ("我们用 PyTorch 训练语言模型", "zh"),
        ("The fox and the crow were in the garden when it began to rain on them.", "en"),
        ("Short words.", "en"),
        ("Der Fuchs und die Krähe waren im Garten, als es anfing, auf sie herab zu regnen, sehr lange.", "other"),
        ("吾輩は猫である。名前はまだ無い。", "other"),
        ("Лиса и ворона были в саду", "other"),
        ("123 456", "other"),
    ],
)
def test_language(text: str, language: str) -> None:
    assert langid.language(text, langid.count([text])[0]) == language


def measured(text: str) -> dict[str, float]:
    return clean.measure([text], langid.count([text]))[0]


def test_measures_are_values() -> None:
    values = measured("天地 ab1\n□!")
    assert values["n_chars"] == 7
    assert values["han"] == pytest.approx(2 / 7, abs=1e-4)
    assert values["letters"] == pytest.approx(5 / 7, abs=1e-4)
    assert values["unreadable"] == pytest.approx(1 / 7, abs=1e-4)
    assert measured("one\ntwo\none")["repeated_lines"] == pytest.approx(3 / 9, abs=1e-4)
    assert measured("Buy it now, buy it. " * 30)["repeated_grams"] > 0.9
    assert tuple(values) == clean.MEASURES


def test_repeated_grams_against_plain_counting() -> None:
    text = "the cat sat on the mat and the cat sat on the hat while the cat sat"
    plain = "".join(text.split())
    grams = [plain[n : n + clean.GRAM] for n in range(len(plain) - clean.GRAM + 1)]
    share = 1 - len(set(grams)) / len(grams)
    values = clean.measure(["x", text, "", text], langid.count(["x", text, "", text]))
    assert [row["repeated_grams"] for row in values] == [0, round(share, 4), 0, round(share, 4)]


@pytest.mark.parametrize(
    ("text", "profile", "reason"),
    [
        ("A plain sentence that says something.", "prose", None),
        ("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。", "prose", None),
        ("床前明月光，疑是地上霜。", "poems", None),
        ("tiny", "prose", "too_short"),
        ("tiny", "none", None),
        ("?!?!?", "none", "empty"),
        ("$$$ *** --- ||| === +++ ### @@@ a b c", "prose", "few_letters"),
        ("Buy it now, buy it. " * 30, "prose", "repeated_grams"),
        ("Home\nNews\nContact us\n" * 9, "prose", "repeated_lines"),
        ("床前□月光，疑是地上霜。举头望明月，低头思故乡。", "poems", "unreadable"),
    ],
)
def test_rules(text: str, profile: str, reason: str | None) -> None:
    breach = clean.breach(measured(text), clean.limits(CorpusSettings(profile=profile)), text)
    assert (breach and breach.reason) == reason


def test_a_recipe_overrides_a_profile() -> None:
    limits = clean.limits(CorpusSettings(profile="prose", min_chars=500, min_han=0.3))
    assert limits["min_chars"] == 500
    assert limits["min_han"] == 0.3
    assert limits["max_unreadable"] == clean.PROFILES["prose"]["max_unreadable"]


def test_every_rule_has_a_setting_and_a_measure() -> None:
    for rule in clean.RULES:
        assert rule.setting in CorpusSettings.model_fields
        assert rule.attribute in clean.MEASURES
    for limits in clean.PROFILES.values():
        assert set(limits) <= {rule.setting for rule in clean.RULES}


@pytest.mark.parametrize("text", ["{text", "{}", "{a.b}", "{a[0]}", "{a:>3}", "{a!r}", "no field"])
def test_templates_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="template"):
        Template(text)


def test_template() -> None:
    template = Template("{title}\n{标题}{{x}} {title}")
    assert template.fields == ("title", "标题")
    assert template.fill({"title": "a", "标题": "b"}) == "a\nb{x} a"
    assert as_text(["a", None, ["b", 1]]) == "a\n\nb\n1"
    with pytest.raises(ValueError, match="object"):
        as_text([{"a": 1}])


def test_heldout_is_a_share_and_grows() -> None:
    ids = [f"document {n}" for n in range(5000)]
    two, ten = ({name for name in ids if is_heldout(name, share)} for share in (0.02, 0.1))
    assert two < ten
    assert len(ten) == pytest.approx(500, abs=80)
    assert not any(is_heldout(name, 0.0) for name in ids)


def test_samples_are_redacted() -> None:
    shown = redact("mail ann@example.org or +49 170 1234567, http://me:secret@host/ " + "x" * 500)
    assert "ann@" not in shown
    assert "1234567" not in shown
    assert "secret" not in shown
    assert len(shown) <= 80
