"""How scripts are written, as parts of classes of characters in regular expressions: `[{UNSPACED}]`."""

JOINERS = "\u200c\u200d"  # zero-width non-joiner and joiner: spelling inside words, in Persian and in Indian scripts

TIBETAN = "\u0f00-\u0fff"  # no spaces between words, but a point after each syllable

# Scripts that put no white space between words, so that each character counts as one: Thai, Lao and Tibetan, Burmese,
# Khmer, kana, Bopomofo, Han, Yi.
UNSPACED = (
    f"\u0e00-\u0eff{TIBETAN}\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u9fff\ua000-\ua4cf\uf900-\ufaff\uff66-\uff9f\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
