"""Scripts and languages of texts."""

import subprocess
import sys

import pytest

from limbeck.evaluation.data_audit.languages import UNSURE, languages, script_shares

TEXTS = {
    "en": ["The cat sat on the mat.", "I love this film very much", "can you cancel my card please"],
    "fa": ["گربه روی فرش نشست.", "من این فیلم را دوست دارم", "می\u200cخواهم یک حساب باز کنم"],
    "ar": ["جلست القطة على السجادة.", "أحب هذا الفيلم كثيرا", "أريد أن أفتح حسابا جديدا"],
    "de": ["Die Katze saß auf der Matte.", "Bitte sperren Sie meine Karte", "Wo bleibt mein Geld?"],
    "fr": ["Le chat est assis sur le tapis.", "Veuillez bloquer ma carte bancaire", "Où est mon argent ?"],
    "zh": ["猫坐在垫子上，看着窗外的雨。", "我非常喜欢这部电影", "请帮我取消这张银行卡"],
}


@pytest.mark.parametrize(("language", "text"), [(each, text) for each, texts in TEXTS.items() for text in texts])
def test_the_language_of_a_short_sentence_is_told(language, text):
    assert languages([text]) == [language]


@pytest.mark.parametrize("text", ["", "  ", "lemon", "...", "\ud800"])
def test_what_tells_no_language_is_unsure(text):
    assert languages([text]) == [UNSURE]


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("abc 123 آب", {"Latin": 0.6, "Arabic": 0.4}),
        ("ｆｕｌｌ 𝐛𝐨𝐥𝐝 ª", {"Latin": 1.0}),
        ("猫とネコ", {"Han": 0.25, "Hiragana": 0.25, "Katakana": 0.5}),
        ("дом 한국", {"Cyrillic": 0.6, "Hangul": 0.4}),
        ("می\u200cروم", {"Arabic": 1.0}),
        ("123 !? 👩", {}),
    ],
)
def test_shares_of_scripts_are_those_of_letters(text, shares):
    assert script_shares([text]) == pytest.approx(shares)


def test_the_largest_script_is_first():
    assert list(script_shares(["a дом"])) == ["Cyrillic", "Latin"]


def test_loading_warns_of_nothing():
    code = "from limbeck.evaluation.data_audit.languages import languages; languages(['a text'])"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
