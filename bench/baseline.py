"""The textbook ATLOP that `bench/run.py` measures against: plain, correct, slow.

What a reader of the paper would write first: a tokenizer call for every word, a list searched for
every pair, Python loops over documents, entities and mentions, eager attention with the attention
of all layers kept, entity attention copied for every pair, and the outer products of all pairs in
one tensor. Weights, batches and numbers are those of `model.ATLOP` (a test compares logits and all
gradients); documents have at most 1,024 tokens, as in the released code.
"""

import json

import torch
from torch import nn
from transformers import AutoModel

WINDOW = 512


def read_docred(path, tokenizer, rel2id, max_seq_length=1024):
    """Features of a DocRED file: title, input_ids, entity_pos, pairs and their multi-hot labels."""
    with open(path, encoding="utf-8") as file:
        documents = json.load(file)
    features = []
    for document in documents:
        starts, ends = [], []
        for entity in document["vertexSet"]:
            for mention in entity:
                starts.append((mention["sent_id"], mention["pos"][0]))
                ends.append((mention["sent_id"], mention["pos"][1] - 1))
        tokens, word_starts = [], []
        for i, sentence in enumerate(document["sents"]):
            positions = {}
            for j, word in enumerate(sentence):
                pieces = tokenizer.tokenize(word)
                if (i, j) in starts:
                    pieces = ["*"] + pieces
                if (i, j) in ends:
                    pieces = pieces + ["*"]
                positions[j] = len(tokens)
                tokens.extend(pieces)
            positions[len(sentence)] = len(tokens)
            word_starts.append(positions)
        entity_pos = []
        for entity in document["vertexSet"]:
            spans = []
            for mention in entity:
                first, end = mention["pos"]
                positions = word_starts[mention["sent_id"]]
                spans.append((positions[first], positions[end]))
            entity_pos.append(spans)
        relations_of = {}
        for x in document["labels"]:
            relations_of.setdefault((x["h"], x["t"]), []).append(rel2id[x["r"]])
        pairs, labels = [], []
        for (head, tail), relations in relations_of.items():
            if head != tail:
                multi_hot = [0] * len(rel2id)
                for relation in relations:
                    multi_hot[relation] = 1
                labels.append(multi_hot)
                pairs.append([head, tail])
        for head in range(len(entity_pos)):
            for tail in range(len(entity_pos)):
                if head != tail and [head, tail] not in pairs:
                    labels.append([1] + [0] * (len(rel2id) - 1))
                    pairs.append([head, tail])
        ids = tokenizer.convert_tokens_to_ids(tokens[: max_seq_length - 2])
        features.append(
            {
                "title": document["title"],
                "input_ids": [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id],
                "entity_pos": entity_pos,
                "pairs": pairs,
                "labels": labels,
            }
        )
    return features


def collate(features, padding):
    """Features -> input_ids, attention_mask [B, L], labels [P, classes], and lists of the rest."""
    longest = max(len(x["input_ids"]) for x in features)
    ids = [x["input_ids"] + [padding] * (longest - len(x["input_ids"])) for x in features]
    mask = [[1.0] * len(x["input_ids"]) + [0.0] * (longest - len(x["input_ids"])) for x in features]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "entity_pos": [x["entity_pos"] for x in features],
        "pairs": [x["pairs"] for x in features],
        "labels": torch.tensor([multi_hot for x in features for multi_hot in x["labels"]]),
    }


class Baseline(nn.Module):
    """ATLOP with the weights of a model.ATLOP; opening, closing: see `utils.special_tokens`."""

    def __init__(self, model, opening, closing):
        super().__init__()
        config = model.model.config
        self.model = AutoModel.from_config(
            config, attn_implementation="eager", trust_remote_code=False
        )
        self.model.pooler = None
        self.emb_size, self.block_size = model.config.emb_size, model.config.block_size
        self.head_extractor = nn.Linear(2 * config.hidden_size, self.emb_size)
        self.tail_extractor = nn.Linear(2 * config.hidden_size, self.emb_size)
        self.bilinear = nn.Linear(self.emb_size * self.block_size, model.config.num_labels)
        self.to(next(model.parameters()).device, next(model.parameters()).dtype)
        self.load_state_dict(model.state_dict())
        self.opening, self.closing = opening, closing

    def encode(self, input_ids, attention_mask):
        """Token embeddings [B, L, d] and the last layer's attention [B, heads, L, L], of one or two
        windows."""
        length = input_ids.shape[1]
        if length <= WINDOW:
            output = self.model(input_ids, attention_mask, output_attentions=True)
            return output.last_hidden_state, output.attentions[-1]
        first, last = len(self.opening), len(self.closing)
        opening = torch.tensor(self.opening, device=input_ids.device)
        closing = torch.tensor(self.closing, device=input_ids.device)
        lengths = attention_mask.sum(1).int().tolist()
        ids, masks, windows = [], [], []  # windows: how many each document has
        for i, tokens in enumerate(lengths):
            if tokens <= WINDOW:
                ids.append(input_ids[i, :WINDOW])
                masks.append(attention_mask[i, :WINDOW])
                windows.append(1)
            else:
                ids.append(torch.cat([input_ids[i, : WINDOW - last], closing]))
                ids.append(torch.cat([opening, input_ids[i, tokens - WINDOW + first : tokens]]))
                masks += [attention_mask[i, :WINDOW], attention_mask[i, tokens - WINDOW : tokens]]
                windows.append(2)
        output = self.model(torch.stack(ids), torch.stack(masks), output_attentions=True)
        hidden, attention = output.last_hidden_state, output.attentions[-1]
        embeddings, attentions, at = [], [], 0
        for count, tokens in zip(windows, lengths, strict=True):
            pad = length - WINDOW
            if count == 1:
                embeddings.append(nn.functional.pad(hidden[at], (0, 0, 0, pad)))
                attentions.append(nn.functional.pad(attention[at], (0, pad, 0, pad)))
            else:
                shift = tokens - WINDOW
                behind = length - tokens
                h1 = nn.functional.pad(hidden[at, : WINDOW - last], (0, 0, 0, pad + last))
                h2 = nn.functional.pad(hidden[at + 1, first:], (0, 0, shift + first, behind))
                a1 = attention[at, :, : WINDOW - last, : WINDOW - last]
                a1 = nn.functional.pad(a1, (0, pad + last, 0, pad + last))
                a2 = attention[at + 1, :, first:, first:]
                sides = (shift + first, behind, shift + first, behind)
                a2 = nn.functional.pad(a2, sides)
                seen = torch.zeros(2, length, device=hidden.device, dtype=hidden.dtype)
                seen[0, : WINDOW - last] = 1
                seen[1, shift + first : tokens] = 1
                embeddings.append((h1 + h2) / seen.sum(0).clamp(min=1)[:, None])
                both = a1 + a2
                attentions.append(both / (both.sum(-1, keepdim=True) + 1e-10))
            at += count
        return torch.stack(embeddings), torch.stack(attentions)

    def pair_representations(self, hidden, attention, entity_pos, pairs):
        """Head and tail embedding and context of every pair, [P, d] each."""
        heads, tails, contexts = [], [], []
        for i in range(len(entity_pos)):
            length = hidden.shape[1]
            embeddings, attentions = [], []
            for mentions in entity_pos[i]:
                of_mentions, mention_attention = [], []
                for start, _ in mentions:
                    if start + 1 < length:
                        of_mentions.append(hidden[i, start + 1])
                        mention_attention.append(attention[i, :, start + 1])
                if of_mentions:
                    embeddings.append(torch.logsumexp(torch.stack(of_mentions), dim=0))
                    attentions.append(torch.stack(mention_attention).mean(0))
                else:
                    embeddings.append(torch.zeros_like(hidden[i, 0]))
                    attentions.append(torch.zeros_like(attention[i, :, 0]))
            embeddings = torch.stack(embeddings)  # [E, d]
            attentions = torch.stack(attentions)  # [E, heads, L]
            index = torch.tensor(pairs[i], device=hidden.device).reshape(-1, 2)
            q = (attentions[index[:, 0]] * attentions[index[:, 1]]).mean(1)  # [P, L]
            q = q / (q.sum(1, keepdim=True) + 1e-5)
            heads.append(embeddings[index[:, 0]])
            tails.append(embeddings[index[:, 1]])
            contexts.append(q @ hidden[i])
        return torch.cat(heads), torch.cat(tails), torch.cat(contexts)

    def forward(self, input_ids, attention_mask, entity_pos, pairs):
        """Logits [P, classes]."""
        hidden, attention = self.encode(input_ids, attention_mask)
        hidden, attention = hidden.to(self.bilinear.weight), attention.to(self.bilinear.weight)
        heads, tails, contexts = self.pair_representations(hidden, attention, entity_pos, pairs)
        z_head = torch.tanh(self.head_extractor(torch.cat([heads, contexts], dim=1)))
        z_tail = torch.tanh(self.tail_extractor(torch.cat([tails, contexts], dim=1)))
        blocks = self.emb_size // self.block_size
        u = z_head.view(-1, blocks, self.block_size, 1)
        v = z_tail.view(-1, blocks, 1, self.block_size)
        return self.bilinear((u * v).view(-1, self.emb_size * self.block_size))


def train_step(
    model, batch, *, loss_function, optimizer, schedule, scaler, autocast, max_grad_norm
):
    """One step; the loss is read back at once."""
    model.train()
    inputs = {name: x for name, x in batch.items() if name != "labels"}
    with autocast():
        logits = model(**inputs)
    loss = loss_function(logits.float(), batch["labels"].bool())
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    schedule.step()
    model.zero_grad()
    return loss.item()


def named_facts(documents):
    """(head name, tail name, relation) of every fact, under all names of its mentions."""
    facts = set()
    for document in documents:
        for x in document["labels"]:
            for head in document["vertexSet"][x["h"]]:
                for tail in document["vertexSet"][x["t"]]:
                    facts.add((head["name"], tail["name"], x["r"]))
    return facts


def official_scores(predictions, truth_path, train_path):
    """F1 and Ign F1 as the official scorer computes them: it reads both files every time, sorts the
    submission to find duplicates, and compares correct predictions under all names."""
    with open(truth_path, encoding="utf-8") as file:
        truth = json.load(file)
    with open(train_path, encoding="utf-8") as file:
        train_facts = named_facts(json.load(file))
    gold, entities = {}, {}
    for document in truth:
        entities[document["title"]] = document["vertexSet"]
        for x in document["labels"]:
            evidence = set(x.get("evidence", []))
            gold[(document["title"], x["r"], x["h"], x["t"])] = evidence
    predictions.sort(key=lambda x: (x["title"], x["h_idx"], x["t_idx"], x["r"]))
    distinct = predictions[:1]
    for before, x in zip(predictions, predictions[1:], strict=False):
        if any(before[key] != x[key] for key in ("title", "h_idx", "t_idx", "r")):
            distinct.append(x)
    correct = in_train = 0
    for x in distinct:
        if x["title"] not in entities:
            continue
        if (x["title"], x["r"], x["h_idx"], x["t_idx"]) not in gold:
            continue
        correct += 1
        vertices, known = entities[x["title"]], False
        for head in vertices[x["h_idx"]]:
            for tail in vertices[x["t_idx"]]:
                if (head["name"], tail["name"], x["r"]) in train_facts:
                    known = True
        in_train += known
    precision, recall = correct / max(1, len(distinct)), correct / max(1, len(gold))
    without_train = (correct - in_train) / (len(distinct) - in_train + 1e-5)

    def f1(precision, recall):
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    return {"f1": f1(precision, recall), "ign_f1": f1(without_train, recall)}
