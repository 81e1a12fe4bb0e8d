/* What stubs of drivers have in common: numbers from the environment, notes in the file $STUB_LOG. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

static void note(const char *format, ...) {
  FILE *file = getenv("STUB_LOG") ? fopen(getenv("STUB_LOG"), "a") : NULL;
  if (!file) return;
  va_list rest;
  va_start(rest, format);
  vfprintf(file, format, rest);
  va_end(rest);
  fclose(file);
}

/* Number `index` of the list $STUB_CARDS, "65,76", or of `otherwise`; 0 where there is none. */
static int listed(int index, const char *otherwise) {
  const char *text = getenv("STUB_CARDS") ? getenv("STUB_CARDS") : otherwise;
  for (; index > 0 && text; --index) text = strchr(text, ',') ? strchr(text, ',') + 1 : NULL;
  return text ? atoi(text) : 0;
}
