"""The adaptive embedding and softmax of Transformer-XL, which divide the vocabulary into clusters by word frequency.

Rare words have narrow embeddings. They are predicted in two steps: the cluster is predicted together with the frequent
words, and then the word in this cluster (https://arxiv.org/abs/1609.04309, https://arxiv.org/abs/1809.10853). Every
module is called in every forward pass, for any words, because FSDP and ZeRO-3 need the same calls on all ranks.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .xl_config import TransfoXLConfig


class Projections(nn.Module):
    """Projections between the width of the model and that of a cluster, by the number of the cluster."""

    def __init__(self, width: int, clusters: list[int]) -> None:
        super().__init__()
        for number, inner in enumerate(clusters):
            self.register_parameter(str(number), nn.Parameter(torch.empty(width, inner)))

    def forward(self, number: int, states: Tensor, inward: bool = False) -> Tensor:
        """States from the width of a cluster to that of the model, or ``inward`` to that of the cluster. Without a
        matrix of this number the states stay as they are."""
        matrix = getattr(self, str(number), None)
        return states if matrix is None else F.linear(states, matrix.T if inward else matrix)


class Words(nn.Linear):
    """Scores of words, or of some of them."""

    def forward(self, states: Tensor, first: int = 0, last: int | None = None) -> Tensor:  # type: ignore[override]
        """Scores [..., words] of the words from ``first`` to ``last`` (exclusive)."""
        return F.linear(states, self.weight[first:last], self.bias[first:last])


class AdaptiveEmbedding(nn.Module):
    """Embeddings of words by cluster."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.num_embeddings = config.vocab_size
        self.ends, self.scale = config.cluster_ends, config.d_model**0.5
        widths, sizes = config.cluster_widths, cluster_sizes(config)
        if config.div_val == 1:
            self.ends, widths, sizes = [0, config.vocab_size], [config.d_embed], [config.vocab_size]
        projected = config.div_val != 1 or config.d_model != config.d_embed
        self.emb_layers = nn.ModuleList(nn.Embedding(size, width) for size, width in zip(sizes, widths, strict=True))
        self.emb_projs = Projections(config.d_model, widths if projected else [])

    def forward(self, tokens: Tensor) -> Tensor:
        """[rows, tokens, width of the model]."""
        found: Tensor | None = None
        for number, embedding in enumerate(self.emb_layers):
            first, last = self.ends[number], self.ends[number + 1]
            states = self.emb_projs(number, embedding((tokens - first).clamp(0, last - first - 1)))
            found = states if found is None else torch.where((tokens >= first)[..., None], states, found)
        assert found is not None
        return found * self.scale


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities of words, and losses that need only some of them."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.ends, self.divided = config.cluster_ends, config.div_val != 1
        widths, sizes = config.cluster_widths, cluster_sizes(config)
        if config.cutoffs:
            self.cluster_weight = nn.Parameter(torch.empty(len(config.cutoffs), config.d_embed))
            self.cluster_bias = nn.Parameter(torch.empty(len(config.cutoffs)))
        projected = self.divided or config.d_model != config.d_embed
        self.out_layers = nn.ModuleList(
            [Words(width, size) for size, width in zip(sizes, widths, strict=True)]
            if self.divided
            else [Words(config.d_embed, config.vocab_size)]
        )
        self.out_projs = Projections(config.d_model, widths if projected else [])

    def forward(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of all words [..., words], in fp32."""
        head = self._head(hidden)
        parts = [head[..., : self.ends[1]]]
        for number in range(1, len(self.ends) - 1):
            parts.append(self._cluster(head, number)[..., None] + self._tail(hidden, number))
        return torch.cat(parts, dim=-1)

    def token_losses(self, hidden: Tensor, labels: Tensor, likeliest: bool) -> tuple[Tensor, Tensor]:
        """Loss of each token in nats (fp32), and the likeliest word of each, where it is asked for.

        A word of a cluster is scored only for tokens whose label lies in the cluster, and for those whose likeliest
        word may lie there: a word is no likelier than its cluster.

        Args:
            hidden: [tokens, width].
            labels: [tokens], numbers of words.
        """
        head, first = self._head(hidden), self.ends[1]
        own = head.gather(1, labels.clamp(max=first - 1)[:, None]).squeeze(1)
        best, words = head.detach()[:, :first].max(1)
        for number in range(1, len(self.ends) - 1):
            low, high = self.ends[number], self.ends[number + 1]
            cluster, inside = self._cluster(head, number), (labels >= low) & (labels < high)
            rows = ((cluster.detach() > best) | inside if likeliest else inside).nonzero().squeeze(1)
            scores = cluster[rows, None] + self._tail(hidden[rows], number)
            of_label = scores.gather(1, (labels[rows] - low).clamp(0, high - low - 1)[:, None]).squeeze(1)
            own = own.index_copy(0, rows, torch.where(inside[rows], of_label, own[rows]))
            if likeliest:
                chance, word = scores.detach().max(1)
                better = chance > best[rows]
                best = best.index_copy(0, rows, torch.where(better, chance, best[rows]))
                words = words.index_copy(0, rows, torch.where(better, word + low, words[rows]))
        return -own, words if likeliest else labels

    def _head(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the words of the first cluster, and of the other clusters: [..., words + clusters]."""
        states = self.out_projs(0, hidden, True)
        scores = self.out_layers[0](states, 0, self.ends[1])
        if len(self.ends) > 2:
            scores = torch.cat([scores, F.linear(states, self.cluster_weight, self.cluster_bias)], dim=-1)
        return scores.float().log_softmax(-1)

    def _cluster(self, head: Tensor, number: int) -> Tensor:
        """Log-probability of a cluster [...]."""
        return head[..., self.ends[1] + number - 1]

    def _tail(self, hidden: Tensor, number: int) -> Tensor:
        """Log-probabilities of the words of a cluster, given the cluster: [..., words]."""
        states = self.out_projs(number, hidden, True)
        if self.divided:
            return self.out_layers[number](states).float().log_softmax(-1)
        return self.out_layers[0](states, self.ends[number], self.ends[number + 1]).float().log_softmax(-1)


def cluster_sizes(config: TransfoXLConfig) -> list[int]:
    """Words of each cluster."""
    return [high - low for low, high in pairwise(config.cluster_ends)]
