"""Inflected English words: which words are plurals, past tenses, -ing forms, third persons, comparatives, superlatives.

A suffix says little: "king" is no -ing form, "this" no plural, "water" no comparative, and "went" and "men" lack it. So
words are listed, by lemma; regular forms follow from spelling, irregular ones stand here. A word that is two forms
("works", plural and third person) or a form and something else ("building", "left", "thought") is none of either: it
is left out, not counted as lacking the form. So are verbs whose past is the bare verb ("put"). Lists are the common
words of a vocabulary of some 50,000 tokens, chosen by hand for this project; they are short of rare words, and a word
that is not listed is left out as well.
"""

from collections.abc import Iterator
from typing import NamedTuple

FORMS = ("plural noun", "past tense", "-ing form", "third person verb", "comparative or superlative")
"""Concepts."""


class WordForm(NamedTuple):
    form: str | None
    """one of `FORMS`; None of a bare word and of a word that only looks inflected"""
    lemma: str
    """the word in a dictionary: go of went"""


VERBS = (
    "accept achieve add admit adopt agree allow apologize appear apply approve argue arrange arrive ask "
    "assume assure attend avoid become begin believe belong bring build carry cease choose collect come "
    "compare compel complain conceive conclude confirm connect consider consist contain continue convince "
    "create decide declare defend define deliver deny depend derive describe deserve destroy determine "
    "develop die disappear discover discuss distinguish earn eat encourage endure enjoy enter entreat "
    "establish exclaim exist expect explain express extend fail feel fetch flee forget forgive gather get "
    "give go grow happen hear hesitate hide hurry imagine imply improve include increase indicate inform "
    "inquire insist intend introduce invite involve join keep know learn lend listen live lose maintain make "
    "manage marry mean meet mention murmur obey observe obtain occur offend offer perceive perform permit "
    "persist persuade possess prefer prepare present preserve pretend prevent proceed produce promote "
    "pronounce propose protect prove provide publish punish pursue realize receive recognize recollect "
    "recommend reduce refuse regard reject rejoice relate release rely remain remember remove render repeat "
    "reply represent require resemble resolve restore retain return reveal say see seek seem sell send serve "
    "sing sit sleep speak spend stand succeed suffer suggest suppose surround survive swear teach tell tend "
    "think throw understand undertake utter vanish wear weep withdraw write"
)
"""Verbs that are no common nouns, so that their -s is a third person."""
NOUN_VERBS = (
    "act address advance aim answer attack attempt base beg bend blow board bow break breathe burn buy call "
    "care catch cause change charge claim climb close command conduct cook cough cover crawl creep crown cry "
    "dance deal delay demand deposit design desire dig dine dispatch display doubt drag draw dream drink "
    "drive drop dwell embrace employ escape estimate excuse face fall fear feed fight fill finish fix fling "
    "fly fold follow force form freeze frown gain gaze glance glow grant grasp grin groan guard guess guide "
    "hang hate haunt help hire hold honour hope hunt inherit invent judge jump kick kill kiss kneel knock "
    "lack land laugh lead leap lift like look love march mark move name nod note notice open order paint pass "
    "pause pay pick place plan plant play plead point pour praise press print promise pull push question "
    "quote race raise range rank reach record refer reflect reform remark reside rest ride ring rise roar "
    "roll rub run rush sail save scream search seize settle shake share shine shoot shout show shrug sigh "
    "sign sink slide slip smell smile smoke sound spare spin spoil stare start state stay steal step stick "
    "stir stop stretch strike strive struggle study stumble submit support sweep swim swing take talk tap "
    "taste tear test thank threaten touch trace trade transfer treat tremble trust try turn type use value "
    "view visit wait wake walk wander want warn wash waste watch wave welcome whisper whistle win wink wish "
    "wonder work worry wrap yield"
)
"""Verbs that are nouns or adjectives as well: their -s is left out."""
DOUBLING = (
    "admit beg begin compel dig drag drop forget get nod occur permit plan prefer refer rub run shrug sit slip "
    "spin step stir stop submit swim tap transfer win wrap"
)
"""Verbs whose last letter is doubled before -ed and -ing."""
IRREGULAR_PAST = (
    "become:became begin:began bend:bent blow:blew break:broke bring:brought build:built buy:bought "
    "catch:caught choose:chose come:came creep:crept deal:dealt dig:dug draw:drew drink:drank drive:drove "
    "eat:ate fall:fell feed:fed feel:felt fight:fought flee:fled fling:flung fly:flew forget:forgot "
    "forgive:forgave freeze:froze get:got give:gave go:went grow:grew hang:hung hear:heard hide:hid "
    "hold:held keep:kept kneel:knelt know:knew lead:led lend:lent lose:lost make:made mean:meant meet:met "
    "pay:paid ride:rode ring:rang run:ran say:said see:saw seek:sought sell:sold send:sent shake:shook "
    "shine:shone sing:sang sink:sank sit:sat sleep:slept slide:slid speak:spoke spend:spent spin:spun "
    "stand:stood steal:stole stick:stuck strike:struck strive:strove swear:swore sweep:swept swim:swam "
    "swing:swung take:took teach:taught tear:tore tell:told throw:threw understand:understood "
    "undertake:undertook wake:woke wear:wore weep:wept win:won withdraw:withdrew write:wrote"
)
NO_PAST = "burn dwell leap like rest rise shoot spoil think use"
"""Verbs whose past tense is a common noun or adjective too, or has two spellings."""
NOUNS = (
    "accident action activity actor adult adventure affair afternoon agency agent album altar amount ancestor "
    "angel animal ant apartment apple area argument arrow article artist aspect assumption author autumn axis "
    "baby banana bandit barn basis basket bean beast bee beggar benefit bird bishop boat body book boot "
    "bottle boy brother building bullet bush cabin candidate candle captain car carpet castle cat cathedral "
    "cell century chapter character chicken child chimney church circumstance city class clergyman cliff club "
    "coat coin college colonel column committee community companion company computer condition consequence "
    "corner cottage country county couple cousin cow creature crime criminal crowd cup curtain custom danger "
    "daughter day decision degree department detail device dinner direction director disease doctor dog "
    "dollar door dozen duty eagle ear economy edge editor effort egg election element emotion empire employee "
    "enemy engine episode error event example exception expense eye fact factory faculty family farm farmer "
    "father feather feature fellow field finger flower foot forest fragment friend function garden gate gene "
    "gentleman girl glove goal god goose government grandchild grave group gun habit hall hat heart hero hill "
    "history home horse hospital hotel hour house husband idea image impression impulse inch incident "
    "industry insect instance institution instrument island item jacket jewel key king kingdom kitchen knee "
    "knife knight lady lake lamp language law lawyer leader leg length lesson letter level library life lip "
    "lord lover machine magazine man manner manuscript map market material meal member memory merchant mile "
    "minister minute mistake moment monk month mother motive mountain mouse movement muscle museum nation "
    "neighbour nerve newspaper night noun novel obstacle occasion ocean officer opinion organ organization "
    "origin owner page pair palace paper parent part particle partner passenger passion path peasant pen "
    "penny period person phrase picture piece pig pistol planet player pocket poem poet politician portion "
    "possession potato prayer president priest prince princess principle prisoner problem professor "
    "proportion province quantity quarter queen reader region relation relative religion restaurant river "
    "road rock room sailor school scientist season sentence sentiment servant shadow shelf shell ship shoe "
    "shoulder sister situation skill soldier son song soul spectator spirit statue stone story stranger "
    "street student subject suggestion symptom system table teacher temple tenant theme theory thief thing "
    "thousand throat ticket toe tone tooth tower town toy tradition traveller tree tribe truth uncle unit "
    "university valley variable vehicle verse version vessel victim village villager virtue volume wall "
    "weapon wedding week wheel wife window wine wing wolf woman wood word worker world writer yard year"
)
"""Nouns whose plural is no common verb."""
IRREGULAR_PLURALS = (
    "axis:axes basis:bases calf:calves child:children clergyman:clergymen criterion:criteria "
    "englishman:englishmen foot:feet gentleman:gentlemen goose:geese grandchild:grandchildren hero:heroes "
    "knife:knives life:lives loaf:loaves man:men mouse:mice ox:oxen phenomenon:phenomena "
    "policeman:policemen potato:potatoes self:selves shelf:shelves thief:thieves tooth:teeth wife:wives "
    "wolf:wolves woman:women"
)
"""Singular and plural."""
ADJECTIVES = (
    "angry big black bold brave brief bright broad calm cheap clear clever close cold cruel dark dear deep "
    "dense dry dull early easy faint fair fast fat fierce fine firm fond fresh full gay gentle grand grave "
    "great green grey handsome happy hard harsh healthy heavy high holy hot humble keen kind large late light "
    "likely lively lofty long loud lovely low lucky mad mean merry mild narrow near neat new noble old pale "
    "plain pleasant poor pretty proud pure quick quiet rare rich ripe rough sad safe sharp short sick simple "
    "slight slow small smart smooth soft soon steady steep stern stiff strange strict strong stupid subtle "
    "sure sweet swift tall tender thick thin tight tiny tough ugly vast warm weak wealthy wet wide wild wise "
    "worthy young"
)
"""Adjectives that are compared by -er and -est."""
DOUBLED_ADJECTIVES = "big fat hot mad sad thin wet"
IRREGULAR_DEGREES = {
    "good": ("better", "best"),
    "bad": ("worse", "worst"),
    "far": ("farther", "farthest", "further", "furthest"),
}
"""Lemma -> its comparatives and superlatives."""
LOOKALIKES = (
    "king thing nothing something anything everything morning evening during string wing sing bring spring "
    "ceiling this his its as thus yes us plus gas bus glass grass loss mass cross boss business always "
    "perhaps indeed need seed weed bed red shed hundred sacred naked wicked feed speed breed exceed water "
    "other another mother father brother sister daughter paper letter number never ever after over under "
    "order power matter river corner manner dinner winter summer silver answer whether either together "
    "however rather rest west forest interest honest modest request harvest priest chest guest and the but of "
    "in to for with on at by from that which who not very so then there here now when where what how why I he "
    "she it we they you me him them my your our their if because though although while until since upon into "
    "about against between among through without within across along around before behind beyond only just "
    "even still again also too once twice almost already soon often quite enough away back down one two three "
    "four five six seven eight nine ten first second third green blue white yellow brown English French "
    "German American Russian London England January Monday able certain dead different double due entire "
    "equal extra false few final former great human impossible little many moral much mutual natural "
    "necessary own possible private public real same several similar single social special such sudden true "
    "usual various whole slowly quickly suddenly really finally certainly exactly hardly simply truly family "
    "body money god courage happiness silence beauty truth love music art sugar bread butter milk gold iron "
    "snow rain air fire earth"
)
"""Words of all kinds that are none of the forms; many end like one."""
AMBIGUOUS = (
    "beginning being blessing building drawing ending feeling hearing landing leading living meaning meeting offering "
    "opening painting reading saying setting standing understanding warning writing "
    "benefits increases mentions murmurs offers permits presents regards rejects releases replies returns stands "
    "advanced aged alarmed concerned determined involved married tired united used "
    "means lower stranger"
)
"""Words with a second reading that the lists do not show."""


def _pairs(listed: str) -> dict[str, str]:
    return {left: right for left, _, right in (pair.partition(":") for pair in listed.split())}


PAST, PLURALS = _pairs(IRREGULAR_PAST), _pairs(IRREGULAR_PLURALS)
SIBILANTS = ("s", "x", "z", "ch", "sh")
VOWELS = "aeiou"


def with_s(word: str) -> str:
    """Plural of a noun, third person of a verb."""
    if word.endswith(SIBILANTS):
        return word + "es"
    return word[:-1] + "ies" if _ends_in_consonant_y(word) else word + "s"


def with_ed(verb: str) -> str:
    if verb in PAST:
        return PAST[verb]
    if verb.endswith("e"):
        return verb + "d"
    if _ends_in_consonant_y(verb):
        return verb[:-1] + "ied"
    return verb + verb[-1] * (verb in DOUBLING.split()) + "ed"


def with_ing(verb: str) -> str:
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e") and not verb.endswith("ee"):
        return verb[:-1] + "ing"
    return verb + verb[-1] * (verb in DOUBLING.split()) + "ing"


def degrees(adjective: str) -> tuple[str, ...]:
    """Comparatives and superlatives."""
    if adjective in IRREGULAR_DEGREES:
        return IRREGULAR_DEGREES[adjective]
    stem = adjective.removesuffix("e") + adjective[-1] * (adjective in DOUBLED_ADJECTIVES.split())
    stem = stem[:-1] + "i" if _ends_in_consonant_y(stem) else stem
    return stem + "er", stem + "est"


def _ends_in_consonant_y(word: str) -> bool:
    return word[-1] == "y" and word[-2] not in VOWELS


def _readings() -> Iterator[tuple[str, WordForm]]:
    """Every word with each of its readings."""
    for verb in (*VERBS.split(), *NOUN_VERBS.split()):
        yield verb, WordForm(None, verb)
        yield with_ing(verb), WordForm("-ing form", verb)
        if verb not in NO_PAST.split():
            yield with_ed(verb), WordForm("past tense", verb)
    for verb in VERBS.split():
        yield ("goes" if verb == "go" else with_s(verb)), WordForm("third person verb", verb)
    for noun in (*NOUNS.split(), *PLURALS):
        yield noun, WordForm(None, noun)
        yield PLURALS.get(noun) or with_s(noun), WordForm("plural noun", noun)
    for adjective in (*ADJECTIVES.split(), *IRREGULAR_DEGREES):
        yield adjective, WordForm(None, adjective)
        yield from ((word, WordForm("comparative or superlative", adjective)) for word in degrees(adjective))
    yield from ((word.lower(), WordForm(None, word.lower())) for word in LOOKALIKES.split())


def _words() -> dict[str, WordForm]:
    """Words that have one reading, in lower case."""
    words: dict[str, WordForm] = {}
    twice: set[str] = set(AMBIGUOUS.split())
    for word, reading in _readings():
        if words.setdefault(word, reading).form != reading.form:
            twice.add(word)
    return {word: reading for word, reading in words.items() if word not in twice}


WORDS = _words()
"""Word -> its form and lemma."""


def form_of(token: str) -> WordForm | None:
    """The form of a token that is a whole word, or None.

    A word begins after a space or with a capital; what begins otherwise may be the end of another ("ages", "ings").
    """
    word = token.strip()
    begins = token[:1].isspace() or word[:1].isupper()
    return WORDS.get(word.lower()) if begins and word.isalpha() else None
