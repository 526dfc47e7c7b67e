"""News-like sentences with persons, places and organisations."""

from typing import Any

from demo.corpus.composed import composed_news
from demo.corpus.lexical import lexical_news
from demo.corpus.words import Draw, Generated, Language, city_name, person_name

_MAX_ENTITIES = 12  # the decoding schema's maxItems


def _place(draw: Draw, language: Language) -> str:
    if lexicon := draw.lexical():
        return lexicon.place(draw.rng, language)
    kind = draw.rng.random()
    if kind < 0.45:
        return city_name(draw, language)
    if kind < 0.7 or language == "en":
        return draw.pick(f"places_{language}")
    if draw.wildly(0.4):
        return draw.characters(1, 3) + draw.of("市省县区镇村湖山岛河国州路街")
    if kind < 0.8:
        return draw.pick("cities_zh") + draw.of(("市", "市", "县"))
    if kind < 0.9:
        return draw.pick("districts_zh") + "区"
    return draw.pick("streets_zh") + draw.pick("street_tails_zh")


def _organisation(draw: Draw, language: Language) -> str:
    if lexicon := draw.lexical():
        return lexicon.organisation(draw.rng, language)
    kind = draw.rng.random()
    tail = draw.pick(f"org_tails_{language}")
    if draw.wildly(0.08):  # no word that tells: what stands around it must
        capitals = draw.letters(2, 5).upper() if draw.chance(0.3) else draw.letters(4, 9).title()
        return capitals if language == "en" else draw.characters(2, 4)
    if language == "en":
        if kind < 0.35:
            return draw.pick("orgs_en")
        word = draw.letters(3, 9).title() if draw.wildly(0.3) else draw.pick("org_words_en")
        first = draw.pick("cities_en") if kind < 0.55 else word
        return f"{first} {tail}"
    if kind < 0.3:
        return draw.pick("orgs_zh")
    word = draw.characters(2, 4) if draw.wildly(0.45) else draw.pick("org_words_zh")
    if kind < 0.5:
        return city_name(draw, language) + tail
    if kind < 0.6:
        return city_name(draw, language) + word + tail
    return word + tail


def draw_entities(draw: Draw) -> Generated:
    """Draw one to three sentences with their entities.

    Args:
        draw: Randomness and word lists.
    Returns:
        The text and its entities in reading order; `nth` counts earlier occurrences of the string.
    """
    language = draw.language()
    makers = {"PER": person_name, "LOC": _place, "ORG": _organisation}
    known: dict[str, list[str]] = {label: [] for label in makers}
    text = ""
    spans: list[tuple[int, str, str]] = []
    for _ in range(draw.rng.choice((1, 1, 1, 2, 2, 3))):
        if draw.wild and draw.lexical(0.45):
            pieces = lexical_news(draw, language)
        elif draw.wildly(0.4):
            pieces = composed_news(draw, language)
        else:
            _, pieces = draw.template(f"entity_templates_{language}", keep=1.0)
        if len(spans) + sum(piece.slot is not None for piece in pieces) > _MAX_ENTITIES:
            break
        text += " " if text and language == "en" else ""
        here: set[str] = set()
        for piece in pieces:
            if not piece.slot:
                text += piece.text
                continue
            again = [name for name in known[piece.slot] if name not in here]
            name = draw.of(again) if again and draw.chance(0.35) else makers[piece.slot](draw, language)
            while name in here:
                name = makers[piece.slot](draw, language)
            here.add(name)
            known[piece.slot].append(name)
            spans.append((len(text), name, piece.slot))
            text += name
    entities: list[dict[str, Any]] = []
    for start, name, label in spans:
        nth = sum(text.startswith(name, earlier) for earlier in range(start))
        entities.append({"text": name, "nth": nth, "label": label})
    return Generated(text.strip(), {"entities": entities}, language)
