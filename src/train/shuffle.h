/*
 * A random order of n things without a list of them: a permutation that is computed place by place, a pure function of
 * (seed, epoch). It is a Feistel network over the smallest even number of bits that n fits in, with Philox as the round
 * function; a result beyond n goes through it again until it is one of the n (Black and Rogaway, "Ciphers with Arbitrary
 * Finite Domains", CT-RSA 2002).
 */
#ifndef AIM_TRAIN_SHUFFLE_H
#define AIM_TRAIN_SHUFFLE_H

#include "base/philox.h"

/* Which of 0 .. n-1 stands at `place` (0 .. n-1) in this epoch. */
static inline uint64_t shuffle_at(uint64_t seed, uint64_t epoch, uint64_t place, uint64_t n)
{
    enum { ROUNDS = 8 };
    unsigned half = 1;
    while (half < 32 && (n - 1) >> 2 * half) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1;
    do {
        uint64_t left = place >> half, right = place & mask;
        for (uint64_t round = 0; round < ROUNDS; round++) {
            struct philox4 r = philox(seed, epoch * ROUNDS + round, (uint32_t)right, PHILOX_SHUFFLE);
            uint64_t mixed = left ^ (r.v[0] & mask);
            left = right;
            right = mixed;
        }
        place = left << half | right;
    } while (place >= n);
    return place;
}

#endif
