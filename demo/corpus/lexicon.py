"""Names and words of a lexicon file (demo/make_lexicon), in the many forms that texts have them in.

Knows no case and reads one file. The forms are made here; what is drawn as it is stands in the file.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# Half of an organisation's ending each; whole endings that the held-out lists have are never made.
_TRADES = (
    "科技 网络 信息 电子 软件 通信 机械 建筑 建材 食品 饮料 服装 纺织 化工 制药 医药 医疗 能源 电力 石油 "
    "矿业 钢铁 汽车 航空 航运 物流 运输 旅游 餐饮 文化 传媒 影视 广告 出版 教育 培训 金融 投资 证券 保险 "
    "信托 租赁 贸易 商贸 农业 林业 渔业 环保 水务 燃气 地产 物业 装饰 家具 家电 玩具 珠宝 化妆品 生物 "
    "材料 光电 仪器 船舶 铁路 咨询 会计师 律师 体育 娱乐 游戏"
).split()
_FIRMS = (
    "公司 公司 有限公司 有限责任公司 股份有限公司 集团 集团公司 实业 控股 厂 总公司 分公司 工作室 中心"
).split()
_SCHOOLS = (
    "大学 师范大学 工业大学 农业大学 医科大学 科技大学 外国语大学 财经大学 交通大学 学院 医学院 音乐学院 "
    "体育学院 美术学院 中学 第二中学 实验中学 附属中学 小学 中心小学 幼儿园 技校 党校 职业技术学校"
).split()
_OFFICES = (
    "政府 市政府 公安局 交通局 卫生局 教育局 环保局 财政局 工商局 气象局 地震局 水利局 旅游局 文化局 "
    "体育局 民政局 海关 法院 中级法院 检察院 派出所 街道办 居委会 村委会 消防队 交警大队 市委 县委 "
    "管委会 发改委 议会 军区"
).split()
_BODIES = (
    "医院 中心医院 儿童医院 中医院 第一医院 附属医院 妇幼保健院 银行 农村信用社 分行 支行 研究所 研究院 "
    "研究中心 实验室 科学院 博物馆 美术馆 纪念馆 体育馆 剧院 歌舞团 交响乐团 电视台 广播电台 日报 晚报 "
    "晚报社 通讯社 出版社 书店 酒店 大酒店 饭店 宾馆 超市 商场 百货 协会 学会 基金会 俱乐部 足球俱乐部 "
    "足球队 篮球队 联盟 同盟 委员会 工会 党 车站 火车站 机场 港务局"
).split()
_GEOGRAPHY = (
    "市 市 县 区 镇 乡 村 省 州 山 岛 河 江 湖 海 湾 港 半岛 群岛 高原 盆地 沙漠 草原 平原 山脉 水库 "
    "森林公园 公园 广场 路 街 大街 大道 胡同 桥 大桥 古城 新区 开发区 工业园 机场路 火车站 寺 峡谷 海峡 "
    "冰川 火山 瀑布"
).split()
_FIRMS_EN = (
    "Inc Inc. Ltd Ltd. LLC PLC Corp. Corporation Company Group GmbH Bank Airlines Motors Foods Energy "
    "Media Software Systems Solutions Technologies Industries Electronics Insurance Capital Pharma "
    "Brewery Records Studios Press Hotels Stores Shipping Steel Mining Telecom Networks Robotics Labs "
    "Entertainment Petroleum Bakery Farms"
).split()
_BODIES_EN = (
    "University;College;Institute of Technology;State University;High School;Primary School;"
    "Business School;Medical School;Hospital;General Hospital;Medical Center;City Council;"
    "Police Department;Fire Department;Chamber of Commerce;Museum of Art;Symphony Orchestra;Opera;Zoo;"
    "Public Library;United;Football Club;Rovers;FC;Tigers;Bears;Airport;Port Authority;Stock Exchange;"
    "Tribune;Herald;Daily News;Post;Gazette;Radio;Society;Commission;Trust;Federation;Parliament;"
    "Supreme Court;Government;Bar;Youth Choir;Film Festival"
).split(";")
_HEADS_EN = (
    "University of {};Bank of {};College of {};Museum of {};Republic Bank of {};Port of {};"
    "City of {} Council;Government of {};Embassy of {};Church of {};Archdiocese of {};Radio {};AC {};"
    "Real {};Royal {} Society;National Bank of {};Institute of {};Friends of {};Air {};"
    "Bishop of {} School"
).split(";")
_SUBJECTS_EN = (
    "Ministry of {};Department of {};National {} Agency;International {} Organisation;World {} Fund;"
    "World {} Forum;European {} Agency;Institute of {};Center for {};Council for {};Society for {};"
    "National {} Council;Federal {} Commission;{} Without Limits;Global {} Alliance;"
    "International {} Union;Save the {};Central {} Bank;{} Workers Union;United {} Party;{} Party;"
    "Royal {} Club;American {} Society;Bureau of {};Office of {}"
).split(";")
_GEOGRAPHY_EN = (
    "Lake {};Mount {};{} River;{} Park;{} Street;{} County;North {};South {};East {};West {};New {};"
    "{} Island;{} Bay;{} Valley;{} Mountains;{} Beach;{} Square;{} Bridge;{} Falls;Port {};Fort {};"
    "Cape {};Saint {};{} Hills;{} Peninsula;{} Desert;{} Avenue;{} Province;{} District;{} Forest;"
    "Gulf of {};Upper {};Old {};{} Heights"
).split(";")
# Kinds that hold names: a tenth of each is drawn by the validation split alone.
_NAMES = (
    *("given_zh", "people_zh", "foreign_zh", "cities_zh", "world_cities_zh", "countries_zh", "places_zh"),
    *(
        "districts_zh",
        "organisations_zh",
        "given_en",
        "surnames_en",
        "cities_en",
        "countries_en",
        "companies_en",
    ),
)
KINDS = (
    *_NAMES,
    *(
        "surnames_zh",
        "brands_zh",
        "nouns_zh",
        "verbs_zh",
        "adjectives_zh",
        "adverbs_zh",
        "times_zh",
        "roles_zh",
    ),
    *("pinyin_given_en", "pinyin_surnames_en", "roles_en", "nouns_en", "verbs_en", "adjectives_en"),
    "adverbs_en",
)


class LexiconError(ValueError):
    """A lexicon file is not what demo/make_lexicon writes."""


def is_set_apart(entry: str) -> bool:
    """Check whether an entry belongs to the tenth that the validation split alone draws from."""
    return hashlib.sha256(entry.encode()).digest()[0] < 26


@dataclass(frozen=True)
class Lexicon:
    """Words and names by kind, and the forms they are written in."""

    entries: Mapping[str, Sequence[str]]
    held_out: frozenset[str] = frozenset()  # endings that are never made

    @cached_property
    def for_training(self) -> "Lexicon":
        """Return the lexicon without the names that are set apart."""
        return self._part(validation=False)

    @cached_property
    def for_validation(self) -> "Lexicon":
        """Return the lexicon with the names that are set apart alone; words and surnames are in both."""
        return self._part(validation=True)

    def _part(self, *, validation: bool) -> "Lexicon":
        kept = {
            kind: [one for one in entries if is_set_apart(one) == validation] if kind in _NAMES else entries
            for kind, entries in self.entries.items()
        }
        return Lexicon(kept, self.held_out)

    def pick(self, rng: random.Random, kind: str) -> str:
        """Choose an entry of a kind."""
        return rng.choice(self.entries[kind])

    def has(self, symbol: str, language: str) -> bool:
        """Check whether the lexicon has words of this sort: nouns, verbs, roles, ..."""
        return f"{symbol}_{language}" in self.entries

    @cached_property
    def _given_characters(self) -> str:
        return "".join(self.entries["given_zh"])

    def person(self, rng: random.Random, language: str) -> str:
        """Draw a person's name without a title.

        Args:
            rng: Randomness.
            language: zh or en.
        Returns:
            Surname and given name, a transliterated name, a name with initials, or a part of one.
        """
        if language == "en":
            return self._person_en(rng)
        kind = rng.random()
        if kind < 0.22:
            return self.pick(rng, "people_zh")
        if kind < 0.58:
            return self.pick(rng, "surnames_zh") + self.pick(rng, "given_zh")
        if kind < 0.74:
            given = "".join(rng.choice(self._given_characters) for _ in range(rng.choice((1, 2, 2))))
            return self.pick(rng, "surnames_zh") + given
        if kind < 0.82:
            return self.pick(rng, "foreign_zh")
        if kind < 0.92:
            parts = [self.pick(rng, "foreign_zh") for _ in range(rng.choice((2, 2, 2, 3)))]
            if rng.random() < 0.1:
                parts[0] = rng.choice("ABCDEFGHJKLMNPRSTW") + "."
            return "·".join(parts)
        if kind < 0.96:
            return rng.choice("小老阿大") + self.pick(rng, "surnames_zh")[0]
        return self._person_en(rng)

    def _person_en(self, rng: random.Random) -> str:
        kind = rng.random()
        given, surname = self.pick(rng, "given_en"), self.pick(rng, "surnames_en")
        if kind < 0.58:
            return f"{given} {surname}"
        letter = rng.choice("ABCDEFGHJKLMNOPRSTVW")
        if kind < 0.68:
            return f"{given} {letter}. {surname}"
        if kind < 0.74:
            return f"{letter}. {surname}" if kind < 0.71 else f"{letter}.{rng.choice('ABCDEJKRT')}. {surname}"
        if kind < 0.79:
            return f"{given} {self.pick(rng, 'given_en')} {surname}"
        if kind < 0.83:
            return f"{given} {surname}-{self.pick(rng, 'surnames_en')}"
        if kind < 0.86:
            return f"{given} {rng.choice(('van', 'de', 'von', 'van der', 'bin', 'al', 'da'))} {surname}"
        if kind < 0.94:
            names = [self.pick(rng, "pinyin_surnames_en"), self.pick(rng, "pinyin_given_en")]
            return " ".join(names if rng.random() < 0.5 else reversed(names))
        return given if rng.random() < 0.5 else surname

    def city(self, rng: random.Random, language: str) -> str:
        """Draw a city's name without a suffix."""
        if language == "en":
            return self.pick(rng, "cities_en")
        kind = rng.random()
        if kind < 0.5:
            return self.pick(rng, "cities_zh")
        if kind < 0.85:
            return self.pick(rng, "world_cities_zh")
        if kind < 0.95:
            return self.pick(rng, "districts_zh").rstrip("区县") or self.pick(rng, "cities_zh")
        return self.pick(rng, "cities_en")

    def street(self, rng: random.Random, language: str) -> str:
        """Draw a street's name without a suffix."""
        if language == "en":
            return rng.choice((self.pick(rng, "surnames_en"), self.pick(rng, "nouns_en").title()))
        kind = rng.random()
        if kind < 0.45:
            return self.pick(rng, "nouns_zh")[:2]
        return self.city(rng, language) if kind < 0.7 else self.pick(rng, "given_zh")

    def place(self, rng: random.Random, language: str) -> str:
        """Draw a city, a country, a district, a street, a mountain or another place."""
        kind = rng.random()
        if language == "en":
            if kind < 0.45:
                return self.pick(rng, "cities_en")
            if kind < 0.65:
                return self.pick(rng, "countries_en")
            name = self.pick(rng, rng.choice(("cities_en", "surnames_en", "given_en", "countries_en")))
            return rng.choice(_GEOGRAPHY_EN).format(name)
        if kind < 0.3:
            return self.city(rng, language)
        if kind < 0.42:
            return self.pick(rng, "countries_zh")
        if kind < 0.65:
            return self.pick(rng, "places_zh")
        if kind < 0.73:
            return self.pick(rng, "districts_zh")
        if kind < 0.8:
            return self.pick(rng, "cities_zh") + rng.choice("市市县省")
        name = self.pick(rng, rng.choice(("given_zh", "foreign_zh", "cities_zh", "nouns_zh")))
        return name + rng.choice(_GEOGRAPHY) if kind < 0.98 else self.pick(rng, "cities_zh") + name + "区"

    def _brand(self, rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.25:
            return self.pick(rng, "nouns_zh")[:2]
        if kind < 0.45:
            return self.pick(rng, "adjectives_zh")[0] + self.pick(rng, "nouns_zh")[0]
        return self._bare_brand(rng)

    def _bare_brand(self, rng: random.Random) -> str:
        """Draw a brand that is no common word, and so can stand for a company by itself."""
        kind = rng.random()
        if kind < 0.3:
            return self.pick(rng, "brands_zh")
        if kind < 0.75:
            return "".join(rng.choice(self._given_characters) for _ in range(rng.choice((2, 2, 2, 3))))
        return self.pick(rng, "foreign_zh")

    def _ending(self, rng: random.Random) -> str:
        while True:
            trade = self.pick(rng, "nouns_zh")[:2] if rng.random() < 0.3 else rng.choice(_TRADES)
            ending = (trade if rng.random() < 0.75 else "") + rng.choice(_FIRMS)
            if ending not in self.held_out:
                return ending

    def organisation(self, rng: random.Random, language: str) -> str:
        """Draw a company, school, authority, club or another organisation."""
        if language == "en":
            return self._organisation_en(rng)
        kind = rng.random()
        if kind < 0.22:
            return self.pick(rng, "organisations_zh")
        if kind < 0.4:
            return (
                (self.place(rng, language) if rng.random() < 0.3 else "")
                + self._brand(rng)
                + self._ending(rng)
            )
        where = self.city(rng, language) if rng.random() < 0.7 else self.place(rng, language)
        if kind < 0.5:
            return where + self._ending(rng)
        if kind < 0.6:
            return where + rng.choice(_SCHOOLS)
        if kind < 0.68:
            return where + rng.choice(_OFFICES)
        if kind < 0.8:
            return where + rng.choice(_BODIES)
        if kind < 0.88:
            return self._brand(rng) + rng.choice(_BODIES + _SCHOOLS)
        if kind < 0.93:
            return rng.choice(("", "国家", "中国", "全国", "国际", where)) + (
                self.pick(rng, "nouns_zh")[:2] + rng.choice("部局署委厅院社会")
            )
        return self._organisation_en(rng) if kind < 0.96 else self._bare_brand(rng)

    def _organisation_en(self, rng: random.Random) -> str:
        kind = rng.random()
        surname = self.pick(rng, "surnames_en")
        noun = self.pick(rng, "nouns_en").title()
        where = self.pick(rng, "cities_en") if rng.random() < 0.8 else self.pick(rng, "countries_en")
        if kind < 0.15:
            return self.pick(rng, "companies_en")
        if kind < 0.3:
            return f"{rng.choice((surname, noun, where))} {rng.choice(_FIRMS_EN)}"
        if kind < 0.4:
            word = rng.choice((self.pick(rng, "adjectives_en").title(), surname, noun))
            return f"{word} {self.pick(rng, 'nouns_en').title()} {rng.choice(_FIRMS_EN)}"
        if kind < 0.55:
            return f"{where if kind < 0.52 else surname} {rng.choice(_BODIES_EN)}"
        if kind < 0.67:
            return rng.choice(_HEADS_EN).format(where)
        if kind < 0.8:
            return rng.choice(_SUBJECTS_EN).format(noun)
        if kind < 0.87:
            other = self.pick(rng, "surnames_en")
            return rng.choice(
                (f"{surname} & {other}", f"{surname} and Sons", f"{surname}, {other} and {noun}")
            )
        if kind < 0.92:
            return "".join(rng.choice("ABCDEFGHIKLMNOPRSTUW") for _ in range(rng.choice((2, 3, 3, 4, 4, 5))))
        first, second = surname[: rng.randint(2, 4)], rng.choice((surname, noun, where))[-rng.randint(2, 4) :]
        return (first + second).replace(" ", "").title()


def load_lexicon(path: Path, held_out: Sequence[str] = ()) -> Lexicon:
    """Read a lexicon file.

    Args:
        path: What demo/make_lexicon wrote.
        held_out: Endings of organisations that must not be made.
    Returns:
        The lexicon.
    Raises:
        LexiconError: The file cannot be read, or is not such a file.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LexiconError(
            f"{path}: not a lexicon ({error}). Make one: demo/make_lexicon --out {path}"
        ) from error
    sound = isinstance(entries, dict) and all(
        isinstance(words, list) and words and all(isinstance(word, str) and word for word in words)
        for words in entries.values()
    )
    missing = sorted(set(KINDS) - set(entries)) if sound else []
    if not sound or missing:
        raise LexiconError(
            f"{path}: not a lexicon ({'no ' + missing[0] if missing else 'kinds and their words expected'}). "
            f"Make one: demo/make_lexicon --out {path}"
        )
    return Lexicon(entries, frozenset(held_out))
