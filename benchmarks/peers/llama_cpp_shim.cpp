// The functions of llama.cpp's internal header clip.h that the benchmark calls, with a C interface for ctypes.
//
// Unusual: clip.h is C++ and is not installed with llama.cpp. The public functions of libmtmd need a language model,
// and decode and resize an image themselves, so that two programs could not be given the same pixels.
#include "clip.h"
#include "clip-impl.h"

#include <cstdio>
#include <exception>

extern "C" {

// Returns a model from an mmproj file, or nullptr.
void * shim_load(const char * path) {
    clip_context_params params = {};
    params.use_gpu = false;
    params.flash_attn_type = CLIP_FLASH_ATTN_TYPE_AUTO;
    params.image_min_tokens = -1;
    params.image_max_tokens = -1;
    params.warmup = true;
    try {
        return clip_init(path, params).ctx_v;
    } catch (const std::exception & error) {
        fprintf(stderr, "%s\n", error.what());
        return nullptr;
    }
}

// Encodes images of one size, normalised, as (images, height, width, 3), into `output`. An image whose height is a
// multiple of its width is a row of tiles, one below the other, unless it is the view of a whole page.
// `length` is the number of floats of all tokens. Returns 0, or -1 if the images could not be encoded.
int shim_encode(void * model, const float * pixels, int images, int height, int width, int is_view, int threads,
                float * output, long length) {
    clip_image_f32_batch batch;
    const size_t size = (size_t) height * width * 3;
    for (int index = 0; index < images; index++) {
        clip_image_f32 image;
        image.set_size({ width, height }, false, false);
        image.cpy_buf(std::vector<float>(pixels + index * size, pixels + (index + 1) * size));
        image.add_viewsep = is_view;
        batch.entries.push_back(std::move(image));
    }
    std::vector<float> tokens(length);
    try {
        if (!clip_image_batch_encode((clip_ctx *) model, threads, &batch, tokens)) {
            return -1;
        }
    } catch (const std::exception & error) {
        fprintf(stderr, "%s\n", error.what());
        return -1;
    }
    std::copy(tokens.begin(), tokens.end(), output);
    return 0;
}

void shim_free(void * model) {
    clip_free((clip_ctx *) model);
}

}
