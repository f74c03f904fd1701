/* Run the compiled kernels on arrays from a file, without Python: under an emulator, or built by another compiler.
 *
 *     kernel_harness INSTRUCTION_SET IN OUT
 *
 * IN: seven int64, the sizes below and a flag for running backwards in time, then float32 arrays. OUT: float32 arrays.
 * Both are in the order of main(). Sequences are (batch, length, channels) in memory. With a rank, steps are projected
 * and A is a logarithm, as in the mixer. Status 3: this processor does not support the instruction set. */

#include "kernel.c"
#include <stdio.h>

static int64_t batch, channels, length, states, width, rank, reverse;
static FILE *in, *out;

static void *checked(void *pointer)
{
    if (!pointer)
        exit(1);
    return pointer;
}

static float *read_array(int64_t size)
{
    float *values = checked(malloc(size * sizeof(float) + 1));
    if (fread(values, sizeof(float), size, in) != (size_t)size)
        exit(1);
    return values;
}

static float *zeros(int64_t size) { return checked(calloc(size + 1, sizeof(float))); }

static void write_array(const float *values, int64_t size)
{
    if (fwrite(values, sizeof(float), size, out) != (size_t)size)
        exit(1);
}

static Sequence sequence(float *values, int64_t size)
{
    return (Sequence){(char *)values, length * size * sizeof(float), sizeof(float), size * sizeof(float), sizeof(float)};
}

int main(int count, char **arguments)
{
    if (count != 4 || !(in = fopen(arguments[2], "rb")) || !(out = fopen(arguments[3], "wb")))
        return 1;
    if (!ssamba_select(arguments[1]))
        return 3;
    int64_t *sizes[] = {&batch, &channels, &length, &states, &width, &rank, &reverse};
    for (int i = 0; i < 7; i++)
        if (fread(sizes[i], sizeof(int64_t), 1, in) != 1)
            return 1;
    int64_t all = batch * channels * length, steps = rank ? rank : channels, sum_width = rank + 2 * states;
    int64_t groups = divide_up(channels, GROUP), tiles = batch * divide_up(length, TILE);
    Batch shape = {batch, channels, length, batch, NULL};

    float *u = read_array(all), *delta = read_array(batch * length * steps), *z = read_array(all);
    float *B = read_array(batch * length * states), *C = read_array(batch * length * states);
    float *A = read_array(channels * states), *D = read_array(channels), *bias = read_array(channels);
    float *step_weight = read_array(channels * rank), *grad_output = read_array(all);
    float *taps = read_array(channels * width), *taps_bias = read_array(channels);

    float *output = zeros(all), *last_state = zeros(batch * channels * states);
    float *grad_u = zeros(all), *grad_delta = zeros(all), *grad_z = zeros(all);
    float *grad_A = zeros(batch * channels * states), *grad_D = zeros(batch * channels);
    float *grad_bias = zeros(batch * channels), *grad_step_weight = zeros(batch * channels * rank);
    float *sums = zeros(groups * batch * length * sum_width);
    Scan scan = {
        .threads = 2, .batch = shape, .states = states, .delta_softplus = 1, .directions = 1, .total = 1, .rank = rank,
        .logarithmic = rank > 0, .sum_width = sum_width, .z = sequence(z, channels), .output = sequence(output, channels),
        .grad_z = sequence(grad_z, channels),
        .direction = {{
            .u = sequence(u, channels), .delta = sequence(delta, steps), .B = sequence(B, states),
            .C = sequence(C, states), .A = A, .D = D, .bias = bias, .step_weight = rank ? step_weight : NULL,
            .reverse = reverse, .last_state = last_state,
            .checkpoints = zeros(tiles * states * divide_up(channels, WIDEST) * WIDEST),
            .grad_u = sequence(grad_u, channels), .grad_delta = sequence(grad_delta, channels), .grad_A = grad_A,
            .grad_D = grad_D, .grad_bias = grad_bias, .grad_step_weight = grad_step_weight, .grad_low = sums,
            .grad_B = sums + rank, .grad_C = sums + rank + states,
        }},
    };
    if (ssamba_scan_forward(&scan))
        return 1;
    write_array(output, all);
    write_array(last_state, batch * channels * states);
    scan.output = sequence(grad_output, channels);
    if (ssamba_scan_backward(&scan))
        return 1;
    write_array(grad_u, all);
    write_array(grad_delta, all);
    write_array(grad_z, all);
    write_array(sums, groups * batch * length * sum_width);
    write_array(grad_A, batch * channels * states);
    write_array(grad_D, batch * channels);
    write_array(grad_bias, batch * channels);
    write_array(grad_step_weight, batch * channels * rank);

    float *grad_taps = zeros(batch * channels * width), *grad_taps_bias = zeros(batch * channels);
    Convolution convolution = {
        .threads = 2, .batch = shape, .width = width, .directions = 1, .x = sequence(u, channels),
        .grad_x = sequence(grad_u, channels),
        .taps = {{taps, taps_bias, reverse, sequence(output, channels), grad_taps, grad_taps_bias}},
    };
    if (ssamba_convolution_forward(&convolution))
        return 1;
    write_array(output, all);
    convolution.taps[0].output = sequence(grad_output, channels);
    if (ssamba_convolution_backward(&convolution))
        return 1;
    write_array(grad_u, all);
    write_array(grad_taps, batch * channels * width);
    write_array(grad_taps_bias, batch * channels);
    return fclose(out) ? 1 : 0;
}
