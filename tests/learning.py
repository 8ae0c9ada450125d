"""Heads over moments of a record, in any family: how they learn, and what chunks change."""

import torch


def learn(family, model, batch, steps, rate):
    """Train on one batch; return the metrics of each step, before it."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    found = []
    for step in range(steps):
        terms = family.loss(model, batch, {}, step)
        means = {n: float((t.sum / t.count).detach()) for n, t in terms.items()}
        found.append(family.training.summarise(means))
        optimizer.zero_grad()
        sum(t.coef * t.sum / t.count for t in terms.values()).backward()
        if step == 0:
            lacking = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
            assert lacking == []
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return found


def check_chunks(family, model, batch, term, weight, chunked, monkeypatch):
    """Small chunks of `chunked.ENTRIES` change neither a term nor the gradient of its `weight`.

    Every parameter gets one. Returns the count of the term.
    """
    sums, gradients = [], []
    for entries in (chunked.ENTRIES, 9):
        monkeypatch.setattr(chunked, "ENTRIES", entries)
        model.zero_grad()
        terms = family.loss(model, batch, {}, 0)
        sum(t.coef * t.sum for t in terms.values()).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        sums.append(terms[term].sum.detach())
        gradients.append(model.get_parameter(weight).grad.clone())
    torch.testing.assert_close(*sums)
    torch.testing.assert_close(*gradients)
    assert float(gradients[0].abs().sum()) > 0
    return float(terms[term].count)


def check_padding(model, make_batch, names):
    """Outputs that are sums over patients are the same of two together and of each alone."""
    together = model(make_batch([30, 7], model.config), 0)
    alone = [model(make_batch([n], model.config, first=1 + i), 0) for i, n in enumerate([30, 7])]
    for name in names:
        torch.testing.assert_close(together[name], sum(one[name] for one in alone))
