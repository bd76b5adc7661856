"""The decode step of a Llama-shaped layer as five Triton kernels (attention: arXiv 2205.14135, with
keys split as in Flash-Decoding).

A step of a few positions reads every weight once and computes next to nothing, so each kernel is a product with all that stands
before and behind it: RMSNorm with queries, keys and values, their rotation and the write to the cache; attention, its keys
split among programs; their combination with the output projection and the residual; RMSNorm with gate, up and activation; down
with the residual. RMSNorm costs no pass of its own: rows are scaled by their root mean square after the product, whose loop
has summed the squares. Sums are in float32.

Where a row's keys lie, a table says (PagedAttention, arXiv 2309.06180): for each row and block of `SLOTS_A_BLOCK` of its slots,
the number of the block in the buffers of keys and values (blocks, G, `SLOTS_A_BLOCK`, d). A row is read as far as its own last
position, by as many splits as that takes; others do and leave nothing. Positions within the last block of the table's rows
are padding: they see nothing, and give zeros.

Whether numbers of positions and blocks are 1 or multiples of 16 is not compiled in: they change from step to step.

Weights are in x's dtype, or int8 with a scale a row (SCALED). TRITON_INTERPRET=1, set before the first import, runs all of it
on a CPU.

Shapes: P positions, D trunk width, H query heads, G key-value heads, d head width, F hidden width of the MLP, C splits of keys.
"""

# Arguments of kernels are pointers and sizes, many, and without types that a checker could follow:
# ruff: noqa: PLR0913
# pyright: basic, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportOptionalOperand=false, reportGeneralTypeIssues=false, reportReturnType=false
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether kernels run on a CPU, in numpy, which has no bfloat16: there, products take their factors as float32."""


@triton.jit
def multiply(left, right, sum):
    """sum + left @ right, in float32."""
    if INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, sum, input_precision="ieee")


@triton.jit
def weight_tile(weight, rows_N, keys_K, in_N, in_K, width, kind: tl.constexpr, SCALED: tl.constexpr):
    """(K, N): columns `keys_K` of these rows of a weight, transposed; int8 in a dtype that holds it exactly."""
    source_KN = weight + rows_N[None, :].to(tl.int64) * width + keys_K[:, None]
    tile_KN = tl.load(source_KN, mask=in_N[None, :] & in_K[:, None], other=0)
    if SCALED:
        tile_KN = tile_KN.to(tl.float32).to(kind)
    return tile_KN


@triton.jit
def normed_pair(
    x,
    gamma,
    weight,
    scale,
    bias,
    places_P,
    in_P,
    first_N,
    second_N,
    in_N,
    width,
    epsilon,
    SCALED,
    BIASED,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Two (P, N) products in float32 of x (P, D), normed by RMSNorm, with two sets of rows of one weight."""
    first = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    second = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    squares_P = tl.zeros((BLOCK_P,), tl.float32)
    for begin in range(0, width, BLOCK_K):
        keys_K = begin + tl.arange(0, BLOCK_K)
        in_K = keys_K < width
        x_PK = tl.load(x + places_P[:, None] * width + keys_K[None, :], mask=in_P[:, None] & in_K[None, :], other=0.0)
        wide_PK = x_PK.to(tl.float32)
        squares_P += tl.sum(wide_PK * wide_PK, axis=1)
        gamma_K = tl.load(gamma + keys_K, mask=in_K, other=0.0).to(tl.float32)
        normed_PK = (wide_PK * gamma_K[None, :]).to(x_PK.dtype)
        first_KN = weight_tile(weight, first_N, keys_K, in_N, in_K, width, x_PK.dtype, SCALED)
        second_KN = weight_tile(weight, second_N, keys_K, in_N, in_K, width, x_PK.dtype, SCALED)
        first = multiply(normed_PK, first_KN, first)
        second = multiply(normed_PK, second_KN, second)
    factor_P = tl.rsqrt(squares_P / width + epsilon)
    first, second = first * factor_P[:, None], second * factor_P[:, None]
    if SCALED:
        first *= tl.load(scale + first_N, mask=in_N, other=0.0).to(tl.float32)[None, :]
        second *= tl.load(scale + second_N, mask=in_N, other=0.0).to(tl.float32)[None, :]
    if BIASED:
        first += tl.load(bias + first_N, mask=in_N, other=0.0).to(tl.float32)[None, :]
        second += tl.load(bias + second_N, mask=in_N, other=0.0).to(tl.float32)[None, :]
    return first, second


@triton.jit(do_not_specialize=["num_positions", "blocks_a_row"])
def qkv_kernel(
    x, gamma, weight, scale, bias, cos, sin, q_norm, k_norm, queries, keys, values, table, rows, positions,
    num_positions, width, num_heads, num_kv_heads, blocks_a_row, epsilon, head_epsilon,
    HEAD_DIM: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SLOTS_A_BLOCK: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """Part `program_id(1)` of head `program_id(0)`: queries first, then keys, then values, which go to the cache.

    Rotary positions pair a head's halves, so a program has `BLOCK_N` columns of either; where queries and keys are normed by
    head (NORMED) all of them.
    """
    half: tl.constexpr = HEAD_DIM // 2
    head = tl.program_id(0)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    place_P = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_P, in_N = place_P < num_positions, column_N < half
    inside = in_P[:, None] & in_N[None, :]
    first_N = head * HEAD_DIM + column_N
    first, second = normed_pair(
        x, gamma, weight, scale, bias, place_P, in_P, first_N, first_N + half, in_N, width, epsilon,
        SCALED, BIASED, BLOCK_P, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if head < num_heads + num_kv_heads:
        if NORMED:
            mean_P = tl.sum(tl.where(in_N[None, :], first * first + second * second, 0.0), axis=1) / HEAD_DIM
            norm = q_norm if head < num_heads else k_norm
            factor_P1 = tl.rsqrt(mean_P + head_epsilon)[:, None]
            first *= factor_P1 * tl.load(norm + column_N, mask=in_N, other=0.0).to(tl.float32)[None, :]
            second *= factor_P1 * tl.load(norm + column_N + half, mask=in_N, other=0.0).to(tl.float32)[None, :]
        turn_PN = place_P[:, None] * HEAD_DIM + column_N[None, :]
        cos_first = tl.load(cos + turn_PN, mask=inside, other=0.0).to(tl.float32)
        sin_first = tl.load(sin + turn_PN, mask=inside, other=0.0).to(tl.float32)
        cos_second = tl.load(cos + turn_PN + half, mask=inside, other=0.0).to(tl.float32)
        sin_second = tl.load(sin + turn_PN + half, mask=inside, other=0.0).to(tl.float32)
        turned = first * cos_first - second * sin_first
        second = second * cos_second + first * sin_second
        first = turned
    if head < num_heads:
        query_PN = queries + (place_P[:, None] * num_heads + head) * HEAD_DIM + column_N[None, :]
        tl.store(query_PN, first.to(queries.dtype.element_ty), mask=inside)
        tl.store(query_PN + half, second.to(queries.dtype.element_ty), mask=inside)
    else:
        row_P = tl.load(rows + place_P, mask=in_P, other=0)
        slot_P = tl.load(positions + place_P, mask=in_P, other=0)
        block_P = tl.load(table + row_P * blocks_a_row + slot_P // SLOTS_A_BLOCK, mask=in_P, other=0)
        kv_head = (head - num_heads) % num_kv_heads
        offset_P = ((block_P * num_kv_heads + kv_head) * SLOTS_A_BLOCK + slot_P % SLOTS_A_BLOCK) * HEAD_DIM
        if head < num_heads + num_kv_heads:
            key_PN = keys + offset_P[:, None] + column_N[None, :]
            tl.store(key_PN, first.to(keys.dtype.element_ty), mask=inside)
            tl.store(key_PN + half, second.to(keys.dtype.element_ty), mask=inside)
        else:
            value_PN = values + offset_P[:, None] + column_N[None, :]
            tl.store(value_PN, first.to(values.dtype.element_ty), mask=inside)
            tl.store(value_PN + half, second.to(values.dtype.element_ty), mask=inside)


@triton.jit
def seen_slot(positions, place_P, in_P, blocks_a_row, SLOTS_A_BLOCK: tl.constexpr):
    """The last slot that a position sees: its own, or -1 where it is padding."""
    slot_P = tl.load(positions + place_P, mask=in_P, other=-1)
    return tl.where(slot_P < (blocks_a_row - 1) * SLOTS_A_BLOCK, slot_P, -1)


@triton.jit(do_not_specialize=["num_positions", "blocks_a_row"])
def attend_kernel(
    queries, keys, values, table, starts, positions, mixed, logsums,
    num_positions, num_heads, num_kv_heads, blocks_a_row, chunk, scale,
    GROUP: tl.constexpr, NUM_PARTS: tl.constexpr, BLOCK_Q: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr, SLOTS_A_BLOCK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """The queries of one row and key-value head over `chunk` of its slots: its new positions are as many more heads. Where they
    are many, a program has one of NUM_PARTS of them.

    starts (R + 1,): where each row's positions begin. mixed (C, P, H, d), and with SPLIT logsums (C, P, H): the logarithm of
    the sum that `mixed` was divided by; both only where the split begins before the position.
    """
    row, split = tl.program_id(0), tl.program_id(2)
    head, part = tl.program_id(1) // NUM_PARTS, tl.program_id(1) % NUM_PARTS
    start, end = tl.load(starts + row), tl.load(starts + row + 1)
    query_Q = part * BLOCK_Q + tl.arange(0, BLOCK_Q)
    place_Q = start + query_Q // GROUP
    head_Q = head * GROUP + query_Q % GROUP
    column_D = tl.arange(0, BLOCK_D)
    in_Q, in_D = place_Q < end, column_D < HEAD_DIM
    slot_Q = seen_slot(positions, place_Q, in_Q, blocks_a_row, SLOTS_A_BLOCK)
    line_Q = place_Q * num_heads + head_Q
    inside = in_Q[:, None] & in_D[None, :]
    query_QD = tl.load(queries + line_Q[:, None] * HEAD_DIM + column_D[None, :], mask=inside, other=0.0)
    query_QD = query_QD.to(keys.dtype.element_ty)
    largest_Q = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total_Q = tl.zeros((BLOCK_Q,), tl.float32)
    sum_QD = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    last = tl.minimum(split * chunk + chunk, tl.max(slot_Q, axis=0) + 1)
    for begin in range(split * chunk, last, BLOCK_S):
        slot_S = begin + tl.arange(0, BLOCK_S)
        in_S = slot_S < last
        block_S = tl.load(table + row * blocks_a_row + slot_S // SLOTS_A_BLOCK, mask=in_S, other=0)
        offset_S = ((block_S * num_kv_heads + head) * SLOTS_A_BLOCK + slot_S % SLOTS_A_BLOCK) * HEAD_DIM
        key_DS = tl.load(keys + offset_S[None, :] + column_D[:, None], mask=in_S[None, :] & in_D[:, None], other=0.0)
        score_QS = multiply(query_QD, key_DS, tl.zeros((BLOCK_Q, BLOCK_S), tl.float32)) * scale
        score_QS = tl.where((slot_S[None, :] <= slot_Q[:, None]) & in_S[None, :], score_QS, float("-inf"))
        larger_Q = tl.maximum(largest_Q, tl.max(score_QS, axis=1))
        finite_Q = tl.where(larger_Q == float("-inf"), 0.0, larger_Q)  # a query may see none of these
        weight_QS = tl.exp(score_QS - finite_Q[:, None])
        shrink_Q = tl.exp(largest_Q - finite_Q)
        value_SD = tl.load(values + offset_S[:, None] + column_D[None, :], mask=in_S[:, None] & in_D[None, :], other=0.0)
        total_Q = total_Q * shrink_Q + tl.sum(weight_QS, axis=1)
        sum_QD = multiply(weight_QS.to(value_SD.dtype), value_SD, sum_QD * shrink_Q[:, None])
        largest_Q = larger_Q
    total_Q = tl.where(total_Q > 0.0, total_Q, 1.0)
    mean_QD = sum_QD / total_Q[:, None]
    line_Q += split * num_positions * num_heads
    if SPLIT:
        in_Q = in_Q & (split * chunk <= slot_Q)
        tl.store(logsums + line_Q, largest_Q + tl.log(total_Q), mask=in_Q)
    inside = in_Q[:, None] & in_D[None, :]
    tl.store(mixed + line_Q[:, None] * HEAD_DIM + column_D[None, :], mean_QD.to(mixed.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_positions", "blocks_a_row"])
def output_kernel(
    mixed, logsums, positions, weight, scale, bias, residual, out,
    num_positions, width, num_heads, blocks_a_row, chunk,
    SPLIT: tl.constexpr, SLOTS_A_BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """residual (P, D) + the output projection of what a position's splits have mixed, combined by their sums; head by head."""
    row_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    place_P = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    column_D = tl.arange(0, BLOCK_D)
    in_P, in_N, in_D = place_P < num_positions, row_N < width, column_D < HEAD_DIM
    inside = in_P[:, None] & in_D[None, :]
    kind = residual.dtype.element_ty
    sum_PN = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    slot_P = seen_slot(positions, place_P, in_P, blocks_a_row, SLOTS_A_BLOCK)
    num_splits = ((tl.max(slot_P, axis=0) + chunk) // chunk).to(tl.int32)
    for head in range(0, num_heads):
        line_P = place_P * num_heads + head
        source_PD = mixed + line_P[:, None] * HEAD_DIM + column_D[None, :]
        if not SPLIT:
            value_PD = tl.load(source_PD, mask=inside, other=0.0).to(kind)
        else:
            largest_P = tl.full((BLOCK_P,), float("-inf"), tl.float32)
            for split in range(0, num_splits):
                sums_P = logsums + line_P + split * num_positions * num_heads
                largest_P = tl.maximum(largest_P, tl.load(sums_P, mask=split * chunk <= slot_P, other=float("-inf")))
            largest_P = tl.where(slot_P < 0, 0.0, largest_P)
            total_P = tl.zeros((BLOCK_P,), tl.float32)
            all_PD = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
            for split in range(0, num_splits):
                seen_P, skipped = split * chunk <= slot_P, split * num_positions * num_heads
                share_P = tl.exp(tl.load(logsums + line_P + skipped, mask=seen_P, other=float("-inf")) - largest_P)
                total_P += share_P
                mean_PD = tl.load(source_PD + skipped * HEAD_DIM, mask=inside & seen_P[:, None], other=0.0)
                all_PD += share_P[:, None] * mean_PD
            value_PD = (all_PD / tl.where(slot_P < 0, 1.0, total_P)[:, None]).to(kind)
        weight_DN = weight_tile(weight, row_N, head * HEAD_DIM + column_D, in_N, in_D, num_heads * HEAD_DIM, kind, SCALED)
        sum_PN = multiply(value_PD, weight_DN, sum_PN)
    finish(sum_PN, scale, bias, residual, out, place_P, row_N, in_P, in_N, width, SCALED, BIASED, True)


@triton.jit
def finish(
    sum_PN, scale, bias, residual, out, place_P, row_N, in_P, in_N, width,
    SCALED: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """Scale, bias and residual of a product, where it has them, and its store."""
    if SCALED:
        sum_PN *= tl.load(scale + row_N, mask=in_N, other=0.0).to(tl.float32)[None, :]
    if BIASED:
        sum_PN += tl.load(bias + row_N, mask=in_N, other=0.0).to(tl.float32)[None, :]
    target_PN, inside = place_P[:, None] * width + row_N[None, :], in_P[:, None] & in_N[None, :]
    if ADDED:
        sum_PN += tl.load(residual + target_PN, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + target_PN, sum_PN.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_positions"])
def gate_kernel(
    x, gamma, weight, scale, bias, gated,
    num_positions, width, hidden_width, epsilon,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """(P, F): SiLU of the gate times up, of x (P, D) normed. The weight has the gate's rows, then those of up."""
    row_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    place_P = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_P, in_N = place_P < num_positions, row_N < hidden_width
    gate, up = normed_pair(
        x, gamma, weight, scale, bias, place_P, in_P, row_N, row_N + hidden_width, in_N, width, epsilon,
        SCALED, BIASED, BLOCK_P, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    value_PN = gate * tl.sigmoid(gate) * up
    target_PN = gated + place_P[:, None] * hidden_width + row_N[None, :]
    tl.store(target_PN, value_PN.to(gated.dtype.element_ty), mask=in_P[:, None] & in_N[None, :])


@triton.jit(do_not_specialize=["num_positions"])
def linear_kernel(
    x, weight, scale, bias, residual, out,
    num_positions, width, num_inputs,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr,
    ADDED: tl.constexpr,
):  # fmt: skip
    """A product of x (P, num_inputs), with ADDED + residual, (P, width): down, and heads."""
    row_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    place_P = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_P, in_N = place_P < num_positions, row_N < width
    kind = x.dtype.element_ty
    sum_PN = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for begin in range(0, num_inputs, BLOCK_K):
        key_K = begin + tl.arange(0, BLOCK_K)
        in_K = key_K < num_inputs
        source_PK = x + place_P[:, None] * num_inputs + key_K[None, :]
        value_PK = tl.load(source_PK, mask=in_P[:, None] & in_K[None, :], other=0.0)
        weight_KN = weight_tile(weight, row_N, key_K, in_N, in_K, num_inputs, kind, SCALED)
        sum_PN = multiply(value_PK.to(kind), weight_KN, sum_PN)
    finish(sum_PN, scale, bias, residual, out, place_P, row_N, in_P, in_N, width, SCALED, BIASED, ADDED)
