"""Makes the demo's data: a small invented corpus in DocRED format and a small random encoder.

    python scripts/make_demo.py --output_dir dataset/demo --seed 66

The demo shows the whole pipeline in minutes on a CPU, without a network or a data set. The language
is simple enough for a small encoder to learn from scratch, but what makes Re-DocRED hard is kept:
most pairs have no relation, entities have shorter names, too, many facts need two sentences, some
follow from others, some pairs have several relations, and entities of every type also occur without
any relation.

Names are composed of invented parts. All splits have the same map (countries, their provinces and
towns), so facts about places recur and Ign F1 is below F1; most other facts of dev and test are
new. The same arguments give the same bytes.
"""

import argparse
import itertools
import json
import random
import re
import string
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast
from transformers.utils.logging import disable_progress_bar

HIDDEN_SIZE = 128
NUM_LAYERS = 2
POSITION_SCALE = 0.03  # BERT's embeddings start at 0.02

# What sentences state: "name: facts | paraphrase | paraphrase ...". A slot {X} is a mention of the
# entity in role X (see ROLES) by its name, {X:s} by its short name, {X:a} by its adjective. No
# mentions are {job}, any profession, and {X:he}, {X:his} and {X:wife}, words that fit X. A fact may
# have roles that its sentence does not mention ("He died in ..."): a cross-sentence fact. Facts of
# the map are not listed here; they come from `map_facts`.
GRAMMAR = """
life: S P569 B; S P570 D; S P27 C | {S} ( {B} - {D} ) was a {C:a} {job} .
  | {S} , born {B} , died {D} , was a {C:a} {job} . | The {C:a} {job} {S} lived {B} - {D} .
alive: S P569 B; S P27 C | {S} ( born {B} ) is a {C:a} {job} . | The {C:a} {job} {S} was born {B} .
born: S P19 T | {S:s} was born in {T} , {R} . | {S:he} was born in {T} , a town in {R} .
both: S P19 T; S P20 T | {S:he} was born and died in {T} , {R} .
  | {S:s} was born and died in {T} , a town in {R} .
died: S P20 T2 | {S:he} died in {T2} , {R} . | {S:s} died in {T2} , a town in {R} .
father: S P22 PA | {S:his} father was {PA} . | {S:his} father {PA} was a {job} .
spouse: S P26 W | {S:his} {W:wife} was {W} . | In {Y} , {S:s} and {S:his} {W:wife} {W} married .
child: S P40 K; W P40 K | The couple had one child , {K} . | Their only child was {K} .
study: S P69 U | {S:he} studied at {U} until {Y3} . | {S:s} left {U} in {Y3} .
met: | In {Y2} , {S:s} met {Q} and {M} . | {S:he} met {Q} and {M} , a {job} , in {Y2} .
travel: | {S:he} and {N} never saw {V} , {F} . | {S:s} and {N} liked to travel to {V} , {F} .
map: | {R} is a province of {C} . | {R} is one of the provinces of {C} .
town: | {T} is a town in {R} , {C} . | {T} is a {C:a} town in the province of {R} .
near: | {R} also contains {T2} . | Near it lies {T2} , a town in {R} .
river: T P206 I | The town lies on the {I} . | {T} stands by the {I} .
flows: T3 P206 I | The {I:s} also flows past {T3} , {R} . | On the {I:s} lies {T3} , a town in {R} .
mayor: T P6 M | Since {Y} , the mayor is {M} . | {M} is mayor of the town since {Y} .
natives: N P19 T; P P19 T | {N} , a {job} , and {P} , a {job} , were born in the town .
  | The {job} {N} and the {job} {P} were born there .
settled: T P571 B | The town was founded on {B} . | {T} was founded on {B} .
school: U P131 T; U P17 C | The town has one school , {U} . | {U} is a school in the town .
people: | In {Y3} , it had {Z} people . | About {Z} people lived in {T} in {Y3} .
guests: | In {V} , {F} , {Q} and {N2} wrote about it . | {Q} and {N2} wrote about it in {V} , {F} .
album: A P175 G; G P495 C | {A} is an album by the {C:a} band {G} .
  | {A} was recorded by {G} , a {C:a} band . | {G} is a {C:a} band known for the album {A} .
release: A P577 D; A P264 L | {L} released the album on {D} . | It came out on {D} by {L} .
songs: E1 P361 A; E2 P361 A | The album has the songs {E1} and {E2} .
  | {E1} and {E2} are songs on {A} .
members: P P463 G; Q P463 G | The members of {G:s} are {P} and {Q} .
  | {P} and {Q} play in {G:s} .
album2: A2 P175 G; A2 P577 Y | Another album of {G:s} is {A2} of {Y} .
  | In {Y} , {G:s} recorded {A2} .
song2: E3 P361 A2 | {A2} has the song {E3} . | {E3} is a song on {A2} .
label: L P159 V | {L} is based in {V} , {F} . | {L} has its office in {V} , {F} .
tour: | In {Y2} , {G2} met {M} in {T} , {R} . | {M} and {G2} sold {Z} tickets in {T} , {R} .
film: X P57 S; X P495 C; X P577 Y | {X} is a {Y} {C:a} film directed by {S} .
  | {X} is a {C:a} film of {Y} made by director {S} .
cast: X P161 P; X P161 E | It stars {P} and {E} . | {P} and {E} star in {X} .
director: S P19 T | {S:s} was born in {T} , {R} .
  | The director was born in {T} , a town in {R} .
cast2: X P161 Q | {Q} has a small part in the film . | A small part is played by {Q} .
script: X P58 M | {M} wrote the script . | The script is by {M} .
script2: X P58 S | {S:s} also wrote the script . | The director also wrote the script .
film2: X2 P57 S; X2 P577 Y2 | In {Y2} , {S:s} directed {X2} .
  | Another film of {S:s} is {X2} of {Y2} .
shown: | Some {Z} people saw it in {V} , {F} . | It was shown to {Z} people in {V} , {F} .
critics: | {N} and {N2} did not like it . | {N} and {N2} praised it in a book of {Y3} .
firm: O P159 T | {O} is a company based in {T} , {C} .
  | {O} is a {C:a} company with its seat in {T} .
start: O P112 S; O P571 Y | {S} founded the company in {Y} . | It was founded by {S} in {Y} .
founder: S P69 U | The founder studied at {U} until {Y3} . | {S:s} left {U} in {Y3} .
parent: J P749 O | {J} is a subsidiary of {O:s} . | {O:s} is the parent of {J} .
seat2: J P159 T2 | {J} is based in {T2} , {R} . | {J} has its seat in {T2} , a town in {R} .
staff: | In {Y2} , {O:s} had {Z} workers . | {Z} people worked for the company in {Y2} .
rival: | Its rival {O2} hired {Q} and {N} in {V} , {F} . | {O2} met {Q} and {N} in {V} , {F} .
"""

# The kinds of document: weight, role whose name is the title, first sentence, and sentences that
# follow in random order, each with its probability; "a/b": one of the two; "a+b": b right after a.
# The last line of each kind has sentences without facts, for entities without relations.
KINDS = [
    (30, "S", "life/alive", "born/both/born+died 1, father .7, spouse+child .9, study .9, map 1,"
                            " met .8, travel .8"),
    (25, "T", "town", "near .9, river+flows .8, mayor .9, natives .9, settled .8, school .7,"
                      " people .8, guests .9"),
    (22, "A", "album", "release 1, songs 1, members .9, album2+song2 .8, label .8, map 1,"
                       " tour .9"),
    (15, "X", "film", "cast 1, cast2 .5, script/script2 1, film2 .8, director 1, map 1,"
                      " shown .9, critics .8"),
    (8, "O", "firm", "start+founder 1, parent+seat2 1, spouse .6, map 1,"
                     " staff .8, rival .9"),
]  # fmt: skip


def compose(starts, ends):
    """All combinations of a start and an end, as a string of words."""
    return " ".join(a + b for a, b in itertools.product(starts.split(), ends.split()))


# Parts of names, all invented. Each part is frequent, most combinations are rare.
WOMEN = "Ada Britta Cora Dina Elke Frida Greta Hilde Ines Jana Kaja Lotte Mara Nora Olga Petra"
MEN = "Anton Boris Carl Dirk Emil Felix Georg Hugo Ivar Jonas Karl Lars Milo Nils Otto Pavel"
SURNAMES = compose(
    "Abel Bran Dorn Fenk Gard Holl Jass Krem Lind Morr Nest Pohl Rask Tarr",
    "ak er elo ine isch ura ow",
)
PLACES = compose(
    "Askel Brun Drav Elm Korv Mird Pelk Quel Runt Tolv Vorn Zell", "vale mark stad wick moor"
)
SITES = "Bay Bridge Cross Falls Ferry Green Haven Hill Mills Point Springs Wells"
SIDES = "North South East West Upper Lower"
COUNTRIES = "Brenov Dorvan Fistrel Gantar Kalmor Lethar Marken Norvel Quill Sarmel Tolus Veldor"
ADJECTIVES = "Amber Bitter Broken Distant Empty Frozen Gentle Golden Hidden Hollow Idle Lonely"
NOUNS = (
    "Anchors Bells Candles Deserts Doors Embers Feathers Gardens Harbours Islands Kings Lamps"
    " Mirrors Nights Oceans Pilots Queens Roads Shadows Stones Towers Voices Winds Winters"
)
FIRMS = "Alvo Bexit Corlan Dynor Exal Fintra Gravo Hexon Intar Jorvex Kinetra Lumo"
TRADES = "Electric Foods Glass Motors Paper Steel Systems Tools"
MONTHS = "January February March April May June July August September October November December"
JOBS = "painter doctor teacher lawyer farmer singer poet sailor baker judge carpenter writer"
GENDERED = {"he": ("he", "she"), "his": ("his", "her"), "wife": ("husband", "wife")}


def numbers(start, stop, step=1):
    """The numbers of a range, as a string of words."""
    return " ".join(map(str, range(start, stop, step)))


# Kind of entity -> (type, roles, words that its name is composed of). Births are earlier than all
# other years, deaths later.
ROLES = {
    "person": ("PER", "S W PA K E M N N2 P Q", [f"{WOMEN} {MEN}", SURNAMES]),
    "country": ("LOC", "C F", []),
    "province": ("LOC", "R", []),
    "town": ("LOC", "T T2 T3 V", []),  # V lies in F, the others in the province R of C
    "river": ("LOC", "I", [PLACES, "River"]),
    "school": ("ORG", "U", [SURNAMES, "College Academy School"]),
    "band": ("ORG", "G G2", ["The", ADJECTIVES, NOUNS]),
    "label": ("ORG", "L", [ADJECTIVES, "Records"]),
    "company": ("ORG", "O O2 J", [FIRMS, TRADES]),
    "work": ("MISC", "A A2 E1 E2 E3 X X2", [NOUNS, "of", NOUNS]),
    "early": ("TIME", "B", [numbers(1, 29), MONTHS, numbers(1870, 1890)]),
    "late": ("TIME", "D", [numbers(1, 29), MONTHS, numbers(1940, 1960)]),
    "year": ("TIME", "Y Y2 Y3", [numbers(1905, 1935)]),
    "number": ("NUM", "Z", [numbers(200, 9900, 100)]),
}
KIND_OF = {role: kind for kind, (_, roles, _) in ROLES.items() for role in roles.split()}

# Facts that follow from others: r(x, y) => inverse(y, x); r1(x, y), r2(y, z) => r3(x, z).
INVERSE = {"P26": "P26", "P22": "P40", "P361": "P527", "P463": "P527", "P749": "P355"}
CHAINS = {
    ("P131", "P131"): "P131",
    ("P131", "P17"): "P17",
    ("P159", "P17"): "P17",  # a company is in the country of its seat
    ("P19", "P17"): "P27",  # the demo's own rule: born in a country, citizen of it
    ("P361", "P175"): "P175",  # the band of the album performs its songs
    ("P175", "P495"): "P495",
}


def read_grammar():
    """GRAMMAR as {name: ([(head role, relation, tail role)], [[token of a template]])}."""
    grammar = {}
    for entry in GRAMMAR.strip().replace("\n  |", " |").splitlines():
        head, *templates = entry.split(" | ")
        name, facts = head.split(":")
        facts = [tuple(fact.split()) for fact in facts.split(";") if fact.strip()]
        grammar[name] = facts, [template.split() for template in templates]
    return grammar


def make_map(rng):
    """A random map {country: {province: [town]}}; a name is a tuple of words."""
    provinces = list(itertools.product(SIDES.split(), PLACES.split()))
    towns = list(itertools.product(PLACES.split(), SITES.split()))
    rng.shuffle(provinces)
    rng.shuffle(towns)
    return {
        (base + "ia",): {provinces.pop(): [towns.pop() for _ in range(10)] for _ in range(6)}
        for base in COUNTRIES.split()
    }


class Document:
    """A document while it is written. Entities are known by their roles."""

    def __init__(self, rng, grammar, world):
        self.rng, self.grammar, self.world = rng, grammar, world
        self.names = {}  # role -> name, a tuple of words
        self.mentions = {}  # role -> [(sentence, start, end)], in order of first mention
        self.sents = []
        self.facts = {}  # (head role, relation, tail role) -> set of evidence sentences

    def name(self, role):
        """The name of the entity in this role, drawn at first use, different from all others."""
        while role not in self.names:
            name = self.draw(role)
            if name not in self.names.values():
                self.names[role] = name
        return self.names[role]

    def draw(self, role):
        kind = KIND_OF[role]
        if kind == "country":
            return self.rng.choice(list(self.world))
        if kind == "province":
            return self.rng.choice(list(self.world[self.name("C")]))
        if kind == "town":
            country = self.world[self.name("F" if role == "V" else "C")]
            province = self.rng.choice(list(country)) if role == "V" else self.name("R")
            return self.rng.choice(country[province])
        first, *rest = (self.rng.choice(words.split()) for words in ROLES[kind][2])
        if role == "W":
            first = self.rng.choice((MEN if self.is_woman("S") else WOMEN).split())
        if role == "PA":
            first = self.rng.choice(MEN.split())
        return first, *(self.name("S")[1:] if role in ("PA", "K") else rest)

    def is_woman(self, role):
        return self.name(role)[0] in WOMEN.split()

    def form(self, role, form):
        """The name in this role: "" in full, "s" short, "a" a country's adjective."""
        name, kind = self.name(role), KIND_OF[role]
        if form == "a":
            return (name[0] + "n",)  # Veldoria, Veldorian
        if form == "s" and kind == "band":
            return "the", name[2]  # The Idle Kings, the Kings
        if form == "s":  # Ada Krem, Krem; Alvo Tools, Alvo; Drav River, Drav
            return name[1:] if kind == "person" else name[:1]
        return name

    def say(self, statement):
        """Adds a sentence, one of the statement's paraphrases, with its mentions and facts."""
        facts, templates = self.grammar[statement]
        words, number = [], len(self.sents)
        for token in self.rng.choice(templates):
            role, _, form = token.strip("{}").partition(":")
            if not token.startswith("{"):
                words.append(token)
            elif role == "job":
                words.append(self.rng.choice(JOBS.split()))
            elif form in GENDERED:
                words.append(GENDERED[form][self.is_woman(role)])
            else:
                name = self.form(role, form)
                span = (number, len(words), len(words) + len(name))
                self.mentions.setdefault(role, []).append(span)
                words.extend(name)
        words[0] = words[0][0].upper() + words[0][1:]
        self.sents.append(words)
        for fact in facts:
            self.facts.setdefault(fact, set()).add(number)

    def all_facts(self):
        """{(head role, relation, tail role): evidence}: facts stated, of the map, and derived."""
        facts = {fact: sorted(sents) for fact, sents in self.facts.items()}
        for h, r, t in list(facts):
            if r == "P40":
                facts[t, "P25" if self.is_woman(h) else "P22", h] = facts[h, r, t]
            elif r in INVERSE:
                facts[t, INVERSE[r], h] = facts[h, r, t]
        derived = set(facts) | {fact for role in self.mentions for fact in map_facts(role)}
        for _ in range(2):  # no chain is longer than three facts
            for (h, r, m), (m2, r2, t) in itertools.product(list(derived), repeat=2):
                if m == m2 and (r, r2) in CHAINS:
                    derived.add((h, CHAINS[r, r2], t))
        seen = self.mentions.keys()
        return {(h, r, t): facts.get((h, r, t), []) for h, r, t in derived if {h, t} <= seen}

    def to_docred(self, title_role):
        """The document in DocRED's JSON, entities in order of first mention."""
        index = {role: i for i, role in enumerate(self.mentions)}
        vertices = [[] for _ in index]
        for role, spans in self.mentions.items():
            for sent, start, end in spans:
                name, kind = " ".join(self.sents[sent][start:end]), ROLES[KIND_OF[role]][0]
                mention = {"name": name, "sent_id": sent, "pos": [start, end], "type": kind}
                vertices[index[role]].append(mention)
        facts = sorted((index[h], index[t], r, e) for (h, r, t), e in self.all_facts().items())
        return {
            "title": " ".join(self.name(title_role)),
            "vertexSet": vertices,
            "labels": [{"h": h, "t": t, "r": r, "evidence": e} for h, t, r, e in facts],
            "sents": self.sents,
        }


def map_facts(role):
    """The facts of the map about the place in this role."""
    kind, country = KIND_OF[role], "F" if role == "V" else "C"
    facts = []
    if kind in ("town", "province"):
        facts += [(role, "P131", country), (role, "P17", country)]
    if kind == "province":
        facts += [(country, "P150", role)]
    if kind == "town" and role != "V":
        facts += [(role, "P131", "R"), ("R", "P150", role)]
    return facts


def write_document(rng, grammar, world):
    """One document of a random kind."""
    _, title_role, opening, rest = rng.choices(KINDS, weights=[kind[0] for kind in KINDS])[0]
    document = Document(rng, grammar, world)
    document.say(rng.choice(opening.split("/")))
    blocks = [block.split() for block in rest.split(", ")]
    rng.shuffle(blocks)
    for statements, chance in blocks:
        if rng.random() < float(chance):
            for statement in rng.choice(statements.split("/")).split("+"):
                document.say(statement)
    return document.to_docred(title_role)


def make_corpus(sizes, seed):
    """{split: [document]}. Titles are unique, because scoring finds documents by title."""
    grammar, world = read_grammar(), make_map(random.Random(seed))
    corpus, titles = {}, set()
    for split, size in sizes.items():
        rng = random.Random(f"{seed} {split}")
        corpus[split] = []
        while len(corpus[split]) < size:
            document = write_document(rng, grammar, world)
            if document["title"] not in titles:
                titles.add(document["title"])
                corpus[split].append(document)
    return corpus


def make_vocabulary(documents):
    """The words of `documents`, and characters to spell other words with."""
    text = " ".join(itertools.chain.from_iterable(s for doc in documents for s in doc["sents"]))
    chars = string.ascii_letters + string.digits + string.punctuation  # "*" marks mentions
    words = sorted(set(re.findall(r"\w+|[^\w\s]", text)) | set(chars))
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *("##" + c for c in chars)]


def make_encoder(vocabulary, folder, seed):
    """Writes a randomly initialised BERT and its tokenizer to `folder`. Position embeddings start
    as sinusoids, so that neighbours are alike, which is otherwise learned in pretraining."""
    folder.mkdir(parents=True, exist_ok=True)
    words = folder / "vocab.txt"
    words.write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(str(words), do_lower_case=False, model_max_length=512)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        intermediate_size=4 * HIDDEN_SIZE,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,  # too small and too briefly trained to overfit
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config)
    table = model.embeddings.position_embeddings.weight.data  # [512, d]
    frequencies = 1e-4 ** (torch.arange(0, HIDDEN_SIZE, 2) / HIDDEN_SIZE)
    angles = torch.arange(len(table))[:, None] * frequencies
    table[:] = torch.cat([angles.sin(), angles.cos()], 1) * POSITION_SCALE
    disable_progress_bar()
    model.save_pretrained(folder)


def main(argv=None):
    """Write the three splits and the encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--num_train", type=int, default=400)
    parser.add_argument("--num_dev", type=int, default=60)
    parser.add_argument("--num_test", type=int, default=100)
    parser.add_argument("--seed", type=int, default=66)
    args = parser.parse_args(argv)
    sizes = {"train": args.num_train, "dev": args.num_dev, "test": args.num_test}
    if sum(sizes.values()) > 4000:
        parser.error("more than 4000 documents: there are not many more names of films and towns")
    corpus = make_corpus(sizes, args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for split, documents in corpus.items():
        path = args.output_dir / f"{split}_revised.json"
        path.write_text(json.dumps(documents), encoding="utf-8")
        entities = sum(len(document["vertexSet"]) for document in documents)
        facts = sum(len(document["labels"]) for document in documents)
        print(f"{path}: {len(documents)} documents, {entities} entities, {facts} facts")
    make_encoder(make_vocabulary(corpus["train"]), args.output_dir / "encoder", args.seed)


if __name__ == "__main__":
    main()
