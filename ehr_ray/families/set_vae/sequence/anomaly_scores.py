"""How surprising each set of a stay is after those before it, and would be if it were wrong.

M sets, D latent. Everything is deterministic: means, no samples.
"""

from torch import Tensor

from ehr_ray.families.set_vae.predict import scores
from ehr_ray.families.set_vae.sequence import experts
from ehr_ray.families.set_vae.sequence.model import SeqSetVAE
from ehr_ray.families.set_vae.sequence.predict import set_errors
from ehr_ray.families.set_vae.wrong_sets import score_table
from ehr_ray.family import Batch


def anomalies(model: SeqSetVAE, batch: Batch) -> Batch:
    """Return the scores of every set, and of one set of each patient made wrong in each way.

    `patient`, `set`, `minute`, `kind`; `kl` = KL(q || prior) of q, the product, which a step's
    objective has too; `recon` and `composition` from its mean, and `nelbo`. The sets before a wrong
    one are as they were, so what it is compared with is not wrong too.
    """
    beliefs = model.beliefs(batch)
    expected = beliefs.p_mu, beliefs.p_logvar, beliefs.gap

    def score(sets: Batch, which: Tensor | None) -> dict[str, Tensor]:
        if which is None:
            return _scores(model, sets, beliefs.q_mu, beliefs.q_logvar, *expected)
        posterior = model.sets.encode(sets)
        q = (part.transpose(0, 1).flatten(1) for part in (posterior.mu, posterior.logvar))
        return _scores(model, sets, *q, *(part[which] for part in expected))

    return score_table(batch, model.config.clip_value, score)


def _scores(
    model: SeqSetVAE,
    sets: Batch,
    mu: Tensor,
    logvar: Tensor,
    p_mu: Tensor,
    p_logvar: Tensor,
    gap: Tensor,
) -> dict[str, Tensor]:
    post_mu, post_logvar = model.product(mu, logvar, p_mu, p_logvar, gap)
    kl = experts.divergence(post_mu, post_logvar, p_mu, p_logvar).sum(1)
    return scores(model.sets, sets, post_mu, set_errors(model, sets, post_mu), kl)
