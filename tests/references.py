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
