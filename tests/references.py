"""Reference implementations of the objectives: loops in float64 that follow the formulas."""

import numpy as np


def softmax(x, axis):
    x = x - x.max(axis=axis, keepdims=True)
    return np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)


def logsumexp(x):
    top = x.max()
    return top + np.log(np.exp(x - top).sum())


def two_way(logits, group=None):
    """Mean cross-entropy of the rows and columns of a matrix, with the diagonal as target."""
    n = len(logits)
    group = np.arange(n) if group is None else np.asarray(group)
    total = 0.0
    for i in range(n):
        keep = [j for j in range(n) if j == i or group[j] != group[i]]
        total += logsumexp(logits[i, keep]) - logits[i, i]
        total += logsumexp(logits[keep, i]) - logits[i, i]
    return total / (2 * n)


def contrastive(image, text, scale, group=None):
    return two_way(np.exp(scale) * image @ text.T, group)


def similarity(words, mask, regions, temperatures=(4.0, 5.0, 10.0)):
    """GLoRIA, one pair at a time, with explicit context vectors."""
    first, second, third = temperatures
    out = np.zeros((len(regions), len(words)))
    for i, image in enumerate(regions):
        for t, (caption, valid) in enumerate(zip(words, mask, strict=True)):
            w = caption[valid]  # V D
            over_words = softmax(image @ w.T, axis=1)  # R V
            attention = softmax(first * over_words, axis=0)  # R V
            context = attention.T @ image  # V D
            norms = np.linalg.norm(context, axis=1) * np.linalg.norm(w, axis=1)
            cosine = (context * w).sum(axis=1) / norms
            out[i, t] = third * logsumexp(second * cosine)
    return out


def local(words, mask, regions, temperatures=(4.0, 5.0, 10.0), group=None):
    return two_way(similarity(words, mask, regions, temperatures), group)


def discrimination(image, candidates, valid, scale):
    losses = []
    for v, options, ok in zip(image, candidates, valid, strict=True):
        if ok.any():
            keep = np.concatenate([[True], ok])
            logits = np.exp(scale) * (options @ v)
            losses.append(logsumexp(logits[keep]) - logits[0])
    return float(np.mean(losses)) if losses else 0.0


def siglip(image, text, scale, bias, group=None):
    n = len(image)
    group = np.arange(n) if group is None else np.asarray(group)
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i != j and group[i] == group[j]:
                continue
            z = (1 if i == j else -1) * (np.exp(scale) * image[i] @ text[j] + bias)
            total += np.logaddexp(0, -z)
    return total / n


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def every_text(size, count, valid=None, key=None, group=None, present=None):
    """Marks of texts as full arrays: without marks, all are valid, present and distinct."""
    valid = np.ones((size, count), bool) if valid is None else valid
    valid = valid & (np.ones(size, bool) if present is None else present)[:, None]
    key = np.arange(size * count).reshape(size, count) if key is None else key
    group = np.arange(size) if group is None else group
    return valid, key, group, np.ones(size, bool) if present is None else present


def shows(image, text, valid, key, group):
    """Whether a text (report, place) may describe an image, too."""
    report, place = text
    own = key[image][valid[image]]
    return group[image] == group[report] or key[report, place] in own


def multi_positive(image, texts, scale, **marks):
    """DreamLIP's contrast, one text at a time."""
    size, count, _ = texts.shape
    valid, key, group, present = every_text(size, count, **marks)
    image, texts = unit(image), unit(texts)
    total = 0.0
    for i, k in zip(*np.nonzero(valid), strict=True):
        of_image = [
            texts[j, k]
            for j in range(size)
            if j != i and valid[j, k] and not shows(i, (j, k), valid, key, group)
        ]
        of_text = [
            image[j]
            for j in range(size)
            if j != i and present[j] and not shows(j, (i, k), valid, key, group)
        ]
        own = scale * image[i] @ texts[i, k]
        for others, one in ((of_image, image[i]), (of_text, texts[i, k])):
            total += logsumexp(np.array([own, *(scale * one @ x for x in others)])) - own
    return total / (2 * max(valid.sum(), 1))


def grouped(text, regions, threshold, weighting):
    """The regions of one image that a text groups, as a unit vector."""
    scores = regions @ text
    if weighting == "minmax":
        weights = (scores - scores.min()) / (scores.max() - scores.min() + 1e-10)
    else:
        weights = softmax(scores, axis=0)
    weights = weights * (weights >= (1 / len(regions) if threshold < 0 else threshold))
    return unit(weights / weights.sum() @ regions)


def grouping(texts, regions, scale, threshold=0.1, weighting="minmax", negatives="batch", **marks):
    """DreamLIP's grouping as intended; within a report, SPARC's."""
    valid, key, group, _ = every_text(*texts.shape[:2], **marks)
    texts, regions = unit(texts), unit(regions)
    places = list(zip(*np.nonzero(valid), strict=True))
    groups = {(i, k): grouped(texts[i, k], regions[i], threshold, weighting) for i, k in places}

    def contrasted(one, two):
        if one == two:
            return True
        alike = key[one] == key[two]
        if one[0] == two[0]:
            return not alike
        return negatives == "batch" and not alike and group[one[0]] != group[two[0]]

    total = 0.0
    for one in places:
        others = [two for two in places if contrasted(one, two)]
        own = scale * groups[one] @ texts[one]
        total += logsumexp(np.array([scale * groups[one] @ texts[two] for two in others])) - own
        total += logsumexp(np.array([scale * groups[two] @ texts[one] for two in others])) - own
    return total / (2 * max(len(places), 1))


def concept_vectors(regions, concepts, scale, bias, valid=None, key=None, group=None, present=None):
    """ConceptCLIP's PC-Align with concepts [B, S, D]."""
    valid, key, group, present = every_text(*concepts.shape[:2], valid, key, group, present)
    total = 0.0
    for b in np.nonzero(present)[0]:
        for i, k in zip(*np.nonzero(valid), strict=True):
            if i != b and shows(b, (i, k), valid, key, group):
                continue
            match = max(scale * unit(region) @ unit(concepts[i, k]) for region in regions[b]) + bias
            total += np.logaddexp(0, -match if i == b else match)
    return total / max(valid.sum(), 1)


def concept_spans(regions, words, spans, owner, scale, bias):
    """The same as published: concepts are spans of the words of their reports."""
    total, concepts = 0.0, [(b, s, e) for (s, e), b in zip(spans, owner, strict=True) if b >= 0]
    for row, start, end in concepts:
        mean = sum(words[row, token] for token in range(start, end)) / (end - start)
        for b, of_image in enumerate(regions):
            match = max(scale * unit(region) @ unit(mean) + bias for region in of_image)
            total -= np.log(1 / (1 + np.exp(-match if b == row else match)))
    return total / len(concepts)


def gradient(function, x, epsilon=1e-6):
    """Central differences in float64, with respect to the array `x`."""
    x = x.astype(np.float64)
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[index] += epsilon
        behind[index] -= epsilon
        result[index] = (function(ahead) - function(behind)) / (2 * epsilon)
    return result
