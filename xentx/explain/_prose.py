"""What is said about each step whatever the rows are: the text of the explanation.

Written once here for all renderers. What these rows show in particular, numbers and notes, is
computed in `_steps`; names in braces are filled in there.
"""

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Prose:
    """The words of a step.

    Parameters
    ----------
    title
        Heading.
    tex, plain
        The formula in TeX and in plain text.
    text
        Paragraphs, with empty lines between them.
    code
        The step in NumPy, going on from ``x``, ``t``, ``rows``, ``dtype`` and the steps before.
    """

    title: str
    tex: str = ""
    plain: str = ""
    text: str
    code: str = ""

    def paragraphs(self, **values: object) -> tuple[str, ...]:
        """Return the paragraphs, each on one line."""
        text = textwrap.dedent(self.text).strip().format_map(values)
        return tuple(" ".join(part.split()) for part in text.split("\n\n"))

    def source(self) -> str:
        """Return the code."""
        return textwrap.dedent(self.code).strip()


PROSE = {
    "logits": Prose(
        title="Logits",
        tex=r"x \in \mathbb{R}^C, \qquad t \in \{0, \dots, C - 1\}",
        plain="x: a score for each of C classes;  t: the right class",
        text="""
            A model gives each class a score, the logit: any real number. The target says which
            class is right. The loss is to be small where the target's logit is well above the
            others.

            Everything below is computed in {dtype}, which has {precision} significant bits, about
            {digits} decimal digits. Numbers are printed with all the digits that they have.
        """,
        code="print(x, t)",
    ),
    "naive softmax": Prose(
        title="Softmax as textbooks write it",
        tex=r"p_k = \frac{e^{x_k}}{\sum_j e^{x_j}}, \qquad \ell = -\log p_t",
        plain="p[k] = e^x[k] / sum(e^x),  loss = -log(p[t])",
        text="""
            The exponential makes every score positive, and dividing by the sum makes them
            probabilities. The loss is minus the logarithm of the target's.

            The formula is right, but a program should not follow it: e^x leaves the range of the
            dtype long before x does.
        """,
        code="""
            e = np.exp(x)
            naive = e / e.sum(axis=-1, keepdims=True)
            print(naive)
            print(-np.log(naive[rows, t]))
        """,
    ),
    "shift": Prose(
        title="Shift by the maximum",
        tex=(
            r"\frac{e^{x_k}}{\sum_j e^{x_j}} = \frac{e^{x_k - m}}{\sum_j e^{x_j - m}}, "
            r"\qquad m = \max_j x_j"
        ),
        plain="p[k] = e^(x[k] - m) / sum(e^(x - m)),  m = max(x)",
        text="""
            Softmax does not change when the same number is taken from all logits: e^-m cancels.
            Taking the largest makes the largest exponent 0. Nothing can overflow, and the sum lies
            between 1 and C, so nothing is divided by 0.
        """,
        code="""
            m = x.max(axis=-1, keepdims=True)
            z = x - m
            total = np.exp(z).sum(axis=-1, keepdims=True)
            print(z)
            print(total)
        """,
    ),
    "log-sum-exp": Prose(
        title="Log-sum-exp",
        tex=(
            r"\mathrm{lse}(x) = \log \sum_j e^{x_j} = m + \log \sum_j e^{x_j - m} "
            r"= m + \mathrm{log1p}(S'), \qquad S' = \sum_{j \ne \arg\max} e^{x_j - m}"
        ),
        plain="lse = log(sum(e^x)) = m + log(sum(e^(x - m))) = m + log1p(S')",
        text="""
            The logarithm of the sum is all that the loss needs: no division and no probabilities.
            One term of the shifted sum is e^0 = 1. Leaving it out gives S', and log1p(S') is
            log(1 + S') without the rounding of 1 + S'.
        """,
        code="""
            top = x == m
            rest = np.where(top, dtype(0), np.exp(z)).sum(axis=-1, keepdims=True)
            rest += (top.sum(axis=-1, keepdims=True) - 1).astype(dtype)  # ties of the largest
            print(np.log(total), np.log1p(rest))
        """,
    ),
    "log-softmax": Prose(
        title="LogSoftmax",
        tex=r"\log p_k = x_k - \mathrm{lse}(x) = (x_k - m) - \mathrm{log1p}(S')",
        plain="log_p[k] = x[k] - lse = (x[k] - m) - log1p(S')",
        text="""
            The logarithms of all probabilities at once. The shifted form matters here too: it
            takes m from x[k] exactly or nearly so, where x[k] and lse may both be large and their
            rounding larger than the result.
        """,
        code="""
            log_p = z - np.log(total)
            print(log_p)
            print(xentx.log_softmax(x))
        """,
    ),
    "nll": Prose(
        title="Negative log-likelihood",
        tex=r"\ell = -\log p_t",
        plain="loss = -log_p[t]",
        text="""
            The likelihood of what was seen is the probability of the target. Its logarithm is
            already there: the loss picks the target's entry and turns its sign. That is all that
            NLLLoss does, and why it wants log-probabilities and not probabilities.
        """,
        code="""
            print(-log_p[rows, t])
            print(xentx.nll_loss(xentx.log_softmax(x), t, reduction="none"))
        """,
    ),
    "cross-entropy": Prose(
        title="CrossEntropy = LogSoftmax + NLL",
        tex=(
            r"\mathrm{CE}(x, t) = \mathrm{NLL}(\mathrm{LogSoftmax}(x), t) = \mathrm{lse}(x) - x_t "
            r"= (m - x_t) + \mathrm{log1p}(S')"
        ),
        plain="CE(x, t) = NLL(LogSoftmax(x), t) = lse - x[t] = (m - x[t]) + log1p(S')",
        text="""
            Two steps and one step are the same function, and agree to rounding. Neither forms a
            probability, which is why both are stable: exp sees no positive argument, and the
            logarithm no 0.

            What is left is rounding. (m - x[t]) + log1p(S') adds two numbers that are never
            negative, so nothing cancels, however small the loss.
        """,
        code='print(xentx.cross_entropy(x, t, reduction="none"))',
    ),
    "gradient": Prose(
        title="The gradient",
        tex=(
            r"\frac{\partial \ell}{\partial x_k} = p_k - [k = t], \qquad "
            r"p_t - 1 = -\sum_{j \ne t} p_j, \qquad \sum_k \frac{\partial \ell}{\partial x_k} = 0"
        ),
        plain="dloss/dx = p - one_hot(t);  p[t] - 1 = -(the others' sum);  the row sums to 0",
        text="""
            The derivative of lse is the softmax, and that of -x[t] is -1 at the target: the
            probabilities minus the one-hot row. It is this simple only because logarithm and
            exponential meet; behind a separate softmax, backpropagation divides by p[t] and
            multiplies by it again, which is no number where p[t] has underflowed to 0.

            Probabilities sum to 1 and so does the one-hot row: the gradient's row sums to 0.
            Adding the same number to all logits doesn't change the loss, so there is no slope in
            that direction. In floating point p[t] - 1 loses what p[t] has rounded away; minus the
            sum of the others does not.
        """,
        code="""
            gradient = np.exp(log_p)
            gradient[rows, t] -= dtype(1)
            print(gradient, gradient.sum(axis=-1))
            grad = xentx.value_and_grad(xentx.cross_entropy)(x, t, reduction="none")[1]
            print(grad, grad.sum(axis=-1))
        """,
    ),
    "mean": Prose(
        title="Several rows: sum and mean",
        tex=r"\mathrm{mean} = \frac{1}{N} \sum_i \ell_i",
        plain="mean = sum(loss) / N",
        text="""
            A batch has a loss for each row. The mean over them, here N = {rows}, is what most
            frameworks train on; its gradient is that of the sum divided by N. With class weights,
            sample weights or ignored rows frameworks divide by different numbers: `xentx diff`
            tells which.
        """,
        code="""
            print(xentx.cross_entropy(x, t, reduction="sum"))
            print(xentx.cross_entropy(x, t))
        """,
    ),
    "choice": Prose(
        title="Which one to use",
        text="""
            To train or to evaluate: one step, from logits. It is the shortest, it is stable, and
            it has the options that need all logits, such as label smoothing.

            Two steps where the log-probabilities are wanted themselves: beam search, distillation,
            a divergence between two models, an ensemble. log_softmax first, then nll_loss; the
            result is the same.

            log(softmax(x)) never: it fails wherever exp leaves the range, and loses the loss of
            every confident row. Nor the one step on probabilities: that takes the softmax of a
            softmax, without an error.
        """,
    ),
}
"""The steps in their order."""
