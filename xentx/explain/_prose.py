"""The text of each step, which does not depend on the rows. All renderers use it.

`_steps` adds the numbers of the rows and the notes about them, and fills in the names in braces.
"""

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Prose:
    """The text of a step.

    Parameters
    ----------
    title
        Heading.
    tex, plain
        The formula in TeX and in plain text.
    text
        Paragraphs, with empty lines between them.
    code
        The step in NumPy. It uses ``x``, ``t``, ``rows``, ``dtype`` and the previous steps.
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
            A model returns a score for each class. The scores are called logits and can be any
            real numbers. The target is the index of the right class. The loss should be small if
            the target's logit is much larger than the others.

            Everything below is computed in {dtype}, which has {precision} significant bits, about
            {digits} decimal digits. Numbers are printed with all their digits.
        """,
        code="print(x, t)",
    ),
    "naive softmax": Prose(
        title="Softmax as textbooks write it",
        tex=r"p_k = \frac{e^{x_k}}{\sum_j e^{x_j}}, \qquad \ell = -\log p_t",
        plain="p[k] = e^x[k] / sum(e^x),  loss = -log(p[t])",
        text="""
            The exponential makes every score positive. Dividing by the sum makes the results
            probabilities. The loss is minus the logarithm of the target's probability.

            The formula is correct, but a program should not compute it in this form: e^x overflows
            or underflows for values of x that are well within the range of the dtype.
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
            Softmax does not change if the same number m is subtracted from all logits, because the
            factors e^-m cancel. With the largest logit as m, the largest exponent is 0. Then no
            exponential overflows, and the sum is between 1 and C, so there is no division by 0.
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
            The loss needs the logarithm of the sum, and neither a division nor probabilities. One
            term of the shifted sum is e^0 = 1. The sum of the other terms is S'. log1p(S') is
            log(1 + S') without the rounding error of 1 + S'.
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
            These are the logarithms of all probabilities. The shifted form is more accurate here
            too: x[k] - m is exact or nearly exact. If x[k] and lse are large, the rounding error
            of lse can be larger than x[k] - lse.
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
            The likelihood of the observed class is the probability of the target. The loss takes
            the target's log-probability and changes its sign. NLLLoss does only this, so its
            argument must be log-probabilities, and not probabilities.
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
            The two steps and the single function compute the same loss and agree up to rounding.
            Neither computes a probability, so both are stable: the arguments of exp are not
            positive, and the argument of log is not 0.

            The rounding error remains. (m - x[t]) + log1p(S') is a sum of two numbers that are not
            negative. No digits cancel, even if the loss is very small.
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
            The derivative of lse with respect to the logits is the softmax, and that of -x[t] is
            -1 for the target and 0 for the other classes. So the gradient is the probabilities
            minus the one-hot row. If a separate softmax comes first, backpropagation divides by
            p[t] and multiplies by it again. The result is NaN if p[t] has underflowed to 0.

            The probabilities sum to 1, and so does the one-hot row. So the row of the gradient
            sums to 0: the loss does not change if the same number is added to all logits. In
            floating point, p[t] - 1 loses the digits that the rounding of p[t] has removed. Minus
            the sum of the other probabilities keeps them.
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
            A batch has a loss for each row. Most frameworks train with the mean of these losses,
            here over N = {rows} rows. Its gradient is the gradient of the sum, divided by N. With
            class weights, sample weights or ignored rows, the frameworks divide by different
            numbers. `xentx diff` lists these differences.
        """,
        code="""
            print(xentx.cross_entropy(x, t, reduction="sum"))
            print(xentx.cross_entropy(x, t))
        """,
    ),
    "choice": Prose(
        title="Which one to use",
        text="""
            To train or evaluate a model, compute cross_entropy of the logits. It is stable, and it
            has the options that need all logits, such as label smoothing.

            If the log-probabilities themselves are needed, for example for beam search,
            distillation or an ensemble, compute log_softmax and then nll_loss. The result is the
            same.

            Do not compute log(softmax(x)). It fails where exp overflows or underflows, and returns
            0 for confident rows. Do not pass probabilities to cross_entropy: it would compute the
            softmax of a softmax, and raise no error.
        """,
    ),
}
"""The steps in their order."""
