/* The classes a person asks for: "207", "3-7", "tabby", and lists of these. */
#ifndef AIM_CLI_CLASSES_H
#define AIM_CLI_CLASSES_H

#include "cli/cli.h"

/* Numbers of the classes named in `text`, in the order given; the caller frees. Needs the model. */
int classes_parse(struct cli *cli, const char *text, int64_t **classes, int64_t *count);

#endif
