/* Pictures and codes as input: files and folders on the command line, arrays of codes. */
#ifndef AIM_CLI_PICTURES_H
#define AIM_CLI_PICTURES_H

#include "cli/cli.h"

struct picture_list {
    char **paths; /* owned */
    int64_t count;
};

/* The inputs of the command, folders replaced by the pictures in them in the order of their names; all can be opened. */
int pictures_collect(struct cli *cli, struct picture_list *list);
void pictures_free(struct picture_list *list);

/* Reads one, scaled and cropped to size x size. */
int pictures_read(struct cli *cli, const char *path, int size, aim_image *image);

/* An integer array (count, tokens), or (tokens) for one picture, as int64; freed with aim_array_free. */
int cli_codes_read(struct cli *cli, const char *path, aim_array *codes, int64_t *count, int64_t *tokens);

/* Every code must be one of `limit`. */
int cli_codes_check(struct cli *cli, const char *path, const int64_t *codes, int64_t count, int64_t tokens, int64_t limit);

#endif
