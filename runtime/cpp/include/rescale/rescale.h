/* The C ABI of rescale.hpp, for other languages. No exception crosses it.
 *
 * Every function that can fail returns a status; rescale_last_error() then has the reason, for this thread, until its next call.
 * Structures begin with their size, set by the caller, so that later versions can add fields; zero stands for the default in all.
 * Names, units and meanings are those of rescale.hpp. Text is UTF-8.
 */

#ifndef RESCALE_H
#define RESCALE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define RESCALE_API __attribute__((visibility("default")))
#else
#define RESCALE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Moves when a program that was built with an older header would go wrong. */
#define RESCALE_ABI_VERSION 1

typedef enum rescale_status {
  RESCALE_OK = 0,
  RESCALE_INPUT = 1,   /* a picture or an argument cannot be used */
  RESCALE_OUTPUT = 2,  /* a result cannot be written */
  RESCALE_BUNDLE = 3,  /* a bundle is missing, damaged or of another format */
  RESCALE_BACKEND = 4, /* a backend is missing or failed */
  RESCALE_OUT_OF_MEMORY = 5,
  RESCALE_LR_FILE = 6, /* an LR file cannot be restored exactly */
  RESCALE_INTERNAL = 7, /* a fault of the library */
  RESCALE_CANCELLED = 8 /* a progress function said so */
} rescale_status;

typedef enum rescale_state {
  RESCALE_EXACT = 0,
  RESCALE_PIXELS_CHANGED = 1,
  RESCALE_AUXILIARY_STRIPPED = 2,
  RESCALE_FOREIGN = 3,
  RESCALE_OTHER_MODEL = 4,
  RESCALE_NEWER_FORMAT = 5,
  RESCALE_DAMAGED = 6
} rescale_state;

typedef struct rescale_session rescale_session; /* a bundle ready to run; thread-safe */
typedef struct rescale_lr rescale_lr;           /* an LR picture; any number of threads may read it */

/* How far a run is: tiles that are done, and all of them. It is called in the thread that asked for the run: before the first tile,
 * after each, and about ten times a second while one runs (on ONNX Runtime). Any value but 0 cancels the run at once: the function
 * that was called returns RESCALE_CANCELLED, and what its targets hold then is worth nothing. Where memory was short, a run begins
 * again from 0 with more tiles. */
typedef int (*rescale_progress)(void* user, uint64_t done, uint64_t total);

typedef struct rescale_options {
  size_t struct_size; /* sizeof(rescale_options) */
  const char* backend;
  const char* precision;
  const char* library;
  const char* provider;
  const char* const* provider_options; /* key, value, key, value, ..., NULL */
  const char* provider_library;
  const char* engines;
  uint64_t memory; /* bytes */
  int32_t threads;
  int32_t tile_width, tile_height; /* LR pixels */
  int32_t exact;
  int32_t device;
} rescale_options;

typedef struct rescale_info {
  size_t struct_size;
  int32_t scale;
  int32_t lr_channels;     /* 3, or 4: -A */
  int32_t latent;          /* 1: -M */
  int32_t halo;            /* LR pixels */
  int32_t receptive_field; /* LR pixels */
  const char* model;       /* text lives as long as the session */
  const char* size;
  const char* weights;
  const char* runner;
} rescale_info;

/* Rows of interleaved 8-bit samples; stride in bytes from row to row, 0: rows follow each other directly. Fixed for good. */
typedef struct rescale_image {
  uint8_t* data;         /* not written to where it is an input */
  int32_t width, height; /* pixels */
  int32_t channels;
  ptrdiff_t stride;
} rescale_image;

/* A chunk of PNG that says how a picture is shown or where it came from: iCCP, cICP, gAMA, cHRM, sRGB, pHYs or eXIf. Fixed for
 * good. */
typedef struct rescale_chunk {
  const char* name;    /* four letters */
  const uint8_t* data; /* its body, as PNG has it */
  size_t size;         /* bytes */
} rescale_chunk;

/* What travels beside the colours of an HR picture. */
typedef struct rescale_extras {
  size_t struct_size;
  const rescale_image* alpha; /* its transparency: one channel, of the picture's size; NULL: opaque */
  const rescale_chunk* chunks;
  size_t chunk_count;
  int32_t gray; /* it is gray, and becomes a gray PNG when it is restored */
} rescale_extras;

/* Memory of the library; free it with rescale_buffer_free. Fixed for good. */
typedef struct rescale_buffer {
  uint8_t* data;
  size_t size; /* bytes */
} rescale_buffer;

/* What is known of an LR picture. Pointers live as long as it does; planes that are not there are NULL. */
typedef struct rescale_lr_info {
  size_t struct_size;
  int32_t state; /* rescale_state */
  int32_t has_marker;
  int32_t width, height;        /* pixels */
  uint64_t hr_width, hr_height; /* pixels; with a marker */
  int32_t scale;
  const char* state_name;
  const char* detail;
  const char* model;
  const char* weights;
  const char* layout;
  const char* source_mode;
  const uint8_t* rgb;
  const uint8_t* alpha;            /* codes */
  const uint8_t* latent;           /* codes, (4, ceil(h / 4), ceil(w / 4)) */
  const uint8_t* source_alpha;     /* hr_height x hr_width */
  const uint8_t* unverified_alpha; /* codes */
  const rescale_chunk* chunks;     /* that travel along */
  size_t chunk_count;
} rescale_lr_info;

RESCALE_API uint32_t rescale_abi_version(void);
RESCALE_API const char* rescale_version(void);
RESCALE_API const char* rescale_last_error(void);
RESCALE_API void rescale_buffer_free(rescale_buffer* buffer);
/* Text on one line, with what could steer a terminal escaped: rescale::printable. Errors, details and names quote files that
 * anybody may have written; what is shown or logged goes through this. A zero byte ends the line; its size leaves it out. */
RESCALE_API rescale_status rescale_printable(const char* text, rescale_buffer* line);

/* options may be NULL. */
RESCALE_API rescale_status rescale_load(const char* bundle, const rescale_options* options, rescale_session** session);
/* The same loaded bundle, whose runs tell how far they are: one for each job, at no cost. Free each; none needs the others. */
RESCALE_API rescale_status rescale_with_progress(const rescale_session* session, rescale_progress progress, void* user,
                                                 rescale_session** watched);
/* Not while it runs: let a progress function cancel the runs, and wait for them. */
RESCALE_API void rescale_free(rescale_session* session);
RESCALE_API rescale_status rescale_get_info(const rescale_session* session, rescale_info* info);

/* Frames: HR with 3 channels (gray: each sample three times; transparency: see rescale_extras), LR of ceil(side / scale) with
 * lr_channels, or 3 for upscaling. latent: 1 channel, ceil(w / 4) by 4 * ceil(h / 4) of the LR's w and h; it may be NULL for
 * upscaling, and where the model has none. */
RESCALE_API rescale_status rescale_downscale(const rescale_session* session, const rescale_image* hr, const rescale_image* lr,
                                             const rescale_image* latent);
RESCALE_API rescale_status rescale_upscale(const rescale_session* session, const rescale_image* lr, const rescale_image* latent,
                                           const rescale_image* hr);

/* PNG files in memory. keep_alpha: carry real transparency along instead of refusing it. max_pixels 0: the default. layout and
 * carrier may be NULL. sidecar may be NULL but for carrier "sidecar". */
RESCALE_API rescale_status rescale_downscale_png(const rescale_session* session, const uint8_t* png, size_t size,
                                                 int32_t keep_alpha, uint64_t max_pixels, const char* layout, const char* carrier,
                                                 rescale_buffer* lr, rescale_buffer* sidecar);
RESCALE_API rescale_status rescale_restore_png(const rescale_session* session, const rescale_lr* lr, int32_t force,
                                               int32_t trust_alpha, rescale_buffer* hr);

/* Pixels in memory of the caller to an LR picture and back. extras may be NULL. The target has the HR picture's size: hr_width by
 * hr_height of rescale_lr_info, or scale times the LR's without a marker that fits it. */
RESCALE_API rescale_status rescale_downscale_lr(const rescale_session* session, const rescale_image* hr,
                                                const rescale_extras* extras, rescale_lr** lr);
RESCALE_API rescale_status rescale_restore(const rescale_session* session, const rescale_lr* lr, int32_t force,
                                           int32_t trust_alpha, const rescale_image* hr);

/* An exact LR picture as a PNG file, in memory or at a path with its side-car beside it; arguments as above. */
RESCALE_API rescale_status rescale_lr_write(const rescale_lr* lr, const char* layout, const char* carrier, rescale_buffer* png,
                                            rescale_buffer* sidecar);
RESCALE_API rescale_status rescale_lr_save(const rescale_lr* lr, const char* path, const char* layout, const char* carrier);

/* An LR file from memory; name is for messages, sidecar may be NULL. A damaged or foreign file is read too: see its state. */
RESCALE_API rescale_status rescale_lr_read(const uint8_t* png, size_t size, const char* name, uint64_t max_pixels,
                                           const uint8_t* sidecar, size_t sidecar_size, rescale_lr** lr);
RESCALE_API rescale_status rescale_lr_open(const char* path, uint64_t max_pixels, rescale_lr** lr);
RESCALE_API void rescale_lr_free(rescale_lr* lr);
RESCALE_API rescale_status rescale_lr_get_info(const rescale_lr* lr, rescale_lr_info* info);
/* Why a session would refuse to restore it; the text lives until this thread's next call. */
RESCALE_API rescale_status rescale_lr_verdict(const rescale_lr* lr, const rescale_session* session, int32_t* state,
                                              const char** detail);

/* TensorRT only: a graph on device memory, in the order of a CUDA stream of the caller; returns at once. Fixed for good. */
typedef struct rescale_device_tensor {
  const char* name;
  void* data;
  int64_t shape[4];
} rescale_device_tensor;
RESCALE_API rescale_status rescale_run_device(const rescale_session* session, const char* graph,
                                              const rescale_device_tensor* inputs, size_t input_count,
                                              const rescale_device_tensor* outputs, size_t output_count, void* stream);

#ifdef __cplusplus
}
#endif

#endif
