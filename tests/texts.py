"""Texts in several scripts: a small corpus to train on and a seeded generator to test with."""

from __future__ import annotations

import random

SENTENCES = (
    "The capital of China is Beijing, a city of more than twenty million people.",
    "Gravity is a force that attracts two bodies towards each other.",
    "How is data stored in the vector database, and where does the query node read it?",
    "Given a web search query, retrieve relevant passages that answer the query",
    "It's what we've said: they'll answer, and I'd agree; don't you?",
    "La mémoire vive est effacée à chaque arrêt, mais le disque garde les données.",
    "Die Größe der Straße hängt von der Übersicht ab, schreibt die Zeitung.",
    "El niño comió piñas mañana por la mañana y después durmió.",
    "Столица России, город Москва, стоит на реке с тем же именем.",
    "Гравитация притягивает тела друг к другу, и планеты движутся вокруг Солнца.",
    "重力是使两个物体相互吸引的力。中国的首都是北京。",
    "数据存储在对象存储中，元数据存储在另一个服务里。",
    "東京は日本の首都です。データはどこに保存されますか。",
    "カタカナとひらがなは日本語の文字です。",
    "서울은 대한민국의 수도이다. 데이터는 어디에 저장됩니까?",
    "عاصمة مصر هي القاهرة، وهي مدينة كبيرة على نهر النيل.",
    "भारत की राजधानी नई दिल्ली है और यहाँ बहुत लोग रहते हैं।",
    "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
    "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας.",
    "בירת ישראל היא ירושלים והיא עיר עתיקה.",
    "def f(x):\n    return x ** 2  # square\n\nprint(f(12345))\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
)

# First and last code point of the letters of each script. Devanagari and Thai include the
# vowel signs and marks that combine with the letter before them.
SCRIPTS: dict[str, tuple[int, int]] = {
    "latin": (0x61, 0x7A),
    "latin_accented": (0xC0, 0x17F),
    "cyrillic": (0x410, 0x44F),
    "greek": (0x3B1, 0x3C9),
    "hebrew": (0x5D0, 0x5EA),
    "arabic": (0x627, 0x64A),
    "devanagari": (0x905, 0x94D),
    "thai": (0xE01, 0xE3A),
    "kana": (0x3041, 0x30F6),
    "han": (0x4E00, 0x9FA5),
    "hangul": (0xAC00, 0xD7A3),
}

# Joined between words: runs of white space, punctuation, digits, emoji, a bare combining mark,
# and spellings that the tokenizer's normal form (NFC) rewrites.
JOINTS = (
    *(" ",) * 12,
    "\n",
    "\n\n",
    "  ",
    "\t",
    ", ",
    ". ",
    "? ",
    "-",
    " (",
    ") ",
    " 2024 ",
    " 3.14",
    " \U0001f600 ",
    " e\u0301a\u0308 ",
    "\u0301 ",
    "\u00a0",
    "\u3000",
    "\r\n",
    "'s ",
    "\ufeff",
    "\x00",
)

EDGE_TEXTS = (
    "",
    " ",
    "   ",
    "\n",
    "\n\n\n",
    "\t \r\n",
    " leading",
    "\nnew line first",
    "trailing \n\n",
    "?",
    "\u0301 combining first",
    "yes",
    "no",
)


def corpus() -> list[str]:
    """Return the training text of the test tokenizer."""
    words = [word for sentence in SENTENCES for word in sentence.split(" ")]
    rng = random.Random(0)
    shuffled = [" ".join(rng.choices(words, k=12)) for _ in range(60)]
    answers = ["yes", "no", "\n\n", "yes\n\nno", " yes", " no", "what?\n"] * 20
    return [*SENTENCES * 4, *shuffled, *answers]


def random_text(rng: random.Random, script: str, words: int) -> str:
    """Return a text of `words` random words of one script."""
    first, last = SCRIPTS[script]
    parts = []
    for _ in range(words):
        letters = rng.randint(1, 7)
        parts.append("".join(chr(rng.randint(first, last)) for _ in range(letters)))
        parts.append(rng.choice(JOINTS))
    return "".join(parts)


def random_texts(seed: int, count: int, longest: int = 14) -> list[str]:
    """Return `count` texts that go through the scripts in turn, of 1 to `longest` words."""
    rng = random.Random(seed)
    scripts = list(SCRIPTS)
    return [
        random_text(rng, scripts[index % len(scripts)], rng.randint(1, longest))
        for index in range(count)
    ]


def random_pairs(seed: int, count: int) -> list[tuple[str, str]]:
    """Return `count` pairs of a query and a document, in the same and in different scripts."""
    queries = random_texts(seed, count, longest=5)
    documents = random_texts(seed + 1, count)
    random.Random(seed + 2).shuffle(documents)
    return list(zip(queries, documents, strict=True))
