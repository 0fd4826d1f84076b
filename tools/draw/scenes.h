/* The classes, in the order of their labels. Each is drawn by a function scene_NAME. */
#ifndef DRAW_SCENES_H
#define DRAW_SCENES_H

#include "draw.h"

#define SCENES(X)                                                                                                              \
    X(alp)                                                                                                                     \
    X(balloon)                                                                                                                 \
    X(beach)                                                                                                                   \
    X(butterfly)                                                                                                               \
    X(cactus)                                                                                                                  \
    X(castle)                                                                                                                  \
    X(cat)                                                                                                                     \
    X(city)                                                                                                                    \
    X(face)                                                                                                                    \
    X(fish)                                                                                                                    \
    X(forest)                                                                                                                  \
    X(house)                                                                                                                   \
    X(lighthouse)                                                                                                              \
    X(mushroom)                                                                                                                \
    X(planet)                                                                                                                  \
    X(sailboat)                                                                                                                \
    X(sunflower)                                                                                                               \
    X(train)                                                                                                                   \
    X(tree)                                                                                                                    \
    X(tulip)

#define SCENE_DECLARE(name) void scene_##name(struct canvas *c);
SCENES(SCENE_DECLARE)
#undef SCENE_DECLARE

#endif
