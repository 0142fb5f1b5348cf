// cuDNN's backend: descriptors remember what is set; engines of a convolution differ by their workspaces, which are a setting.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "card.h"

namespace {
struct Content;
using Shared = std::shared_ptr<Content>;
struct Value { std::vector<char> bytes; std::vector<Shared> parts; int64_t count = 0; };
struct Content { std::map<int, Value> values; };
struct Descriptor { Shared content = std::make_shared<Content>(); };
struct Handle { void *stream = nullptr; };

constexpr int DESCRIPTOR_TYPE = 15;
enum Name {  // CUDNN_ATTR_
    HEUR_GRAPH = 201, HEUR_RESULTS = 202, CONFIG_ENGINE = 300, CONFIG_WORKSPACE = 303, PLAN_CONFIG = 401,
    PLAN_WORKSPACE = 402, PLAN_JSON = 405, CONV_W = 703, CONV_X = 704, CONV_Y = 705, GRAPH_OPERATIONS = 801,
    GRAPH_ENGINES = 802, TENSOR_TYPE = 901, TENSOR_DIMS = 902, TENSOR_STRIDES = 903, ENGINE_GRAPH = 1300, ENGINE_INDEX = 1301
};
size_t attribute_bytes(int type) {  // of CUDNN_TYPE_
    switch (type) {
        case 0: case 3: case 5: case 6: case 25: return 8;  // handle, int64, double, pointer
        case 2: case 24: return 1;
        case 26: return 16;
        default: return 4;
    }
}
double item_bytes(const Shared &tensor) {
    auto &type = tensor->values[TENSOR_TYPE].bytes;
    switch (type.empty() ? -1 : type[0]) {  // CUDNN_DATA_
        case 1: return 8;
        case 0: case 4: return 4;
        case 2: case 9: return 2;
        default: return 1;
    }
}
Shared part(Shared content, std::initializer_list<int> path) {  // the first one at each step, or null
    for (int name : path) {
        if (!content || content->values[name].parts.empty()) return nullptr;
        content = content->values[name].parts[0];
    }
    return content;
}
std::vector<int64_t> numbers(const Shared &tensor, int name) {
    auto &value = tensor->values[name];
    auto *first = reinterpret_cast<const int64_t *>(value.bytes.data());
    return {first, first + value.count};
}
std::vector<int64_t> dims(const Shared &tensor) { return numbers(tensor, TENSOR_DIMS); }
bool is_contiguous(const Shared &tensor) {  // as PyTorch has it: where a dimension is of one element, its stride is none
    auto shape = dims(tensor), strides = numbers(tensor, TENSOR_STRIDES);
    int64_t expected = 1;
    for (size_t i = shape.size(); i-- > 0 && i < strides.size(); expected *= shape[i])
        if (shape[i] != 1 && strides[i] != expected) return false;
    return true;
}
double elements(const Shared &tensor) {
    double product = 1;
    for (auto dim : dims(tensor)) product *= dim;
    return product;
}
struct Work {
    double flops = 0, bytes = 0;
    double image_in_bytes = 0, image_out_bytes = 0;  // copies in the order of tensor cores; none where images have it
};
Work weigh(const Shared &graph) {
    Shared w = part(graph, {GRAPH_OPERATIONS, CONV_W}), x = part(graph, {GRAPH_OPERATIONS, CONV_X}),
           y = part(graph, {GRAPH_OPERATIONS, CONV_Y});
    if (!w || !x || !y) return {};
    auto shape = dims(y);
    double channels = shape.size() > 1 && shape[1] ? shape[1] : 1;
    Work work{2 * elements(y) * elements(w) / channels, (elements(w) + elements(x) + elements(y)) * item_bytes(x)};
    if (is_contiguous(x))
        work.image_in_bytes = elements(x) * item_bytes(x), work.image_out_bytes = elements(y) * item_bytes(y);
    return work;
}
// NULLCUDA_WORKSPACE is a number of bytes, or "images": what was seen on GPUs. There are engines that copy a convolution's
// contiguous images, and one that does without the result's, for when memory is short.
constexpr int WITH_BOTH = 0, WITHOUT_RESULT = 1, LAYOUT_PASSES = 2;
bool has_images() {
    const char *text = getenv("NULLCUDA_WORKSPACE");
    return text && !strcmp(text, "images");
}
Shared graph_of(const Shared &config) { return part(config, {CONFIG_ENGINE, ENGINE_GRAPH}); }
int64_t workspace_bytes(const Shared &config) {
    const char *text = getenv("NULLCUDA_WORKSPACE");
    if (!text) return 0;
    if (!has_images()) return static_cast<int64_t>(strtod(text, nullptr));
    Work work = weigh(graph_of(config));
    bool is_short = numbers(part(config, {CONFIG_ENGINE}), ENGINE_INDEX)[0] == WITHOUT_RESULT;
    return static_cast<int64_t>(work.image_in_bytes + (is_short ? 0 : work.image_out_bytes));
}

void put(const Shared &content, int name, int64_t number) {
    auto &value = content->values[name];
    value.bytes.resize(sizeof number), value.count = 1;
    memcpy(value.bytes.data(), &number, sizeof number);
}
void put(const Shared &content, int name, const Shared &only) {
    content->values[name].parts = {only}, content->values[name].count = 1;
}
// What is not set but follows: the engines, their configurations and workspaces, the plan as text.
void work_out(const Shared &content, int name) {
    if (name == HEUR_RESULTS) {
        auto &results = content->values[name];
        results.parts.clear();
        for (int index = WITH_BOTH; index <= (has_images() ? WITHOUT_RESULT : WITH_BOTH); ++index) {
            auto engine = std::make_shared<Content>(), config = std::make_shared<Content>();
            engine->values[ENGINE_GRAPH] = content->values[HEUR_GRAPH];
            put(engine, ENGINE_INDEX, index);
            put(config, CONFIG_ENGINE, engine);
            results.parts.push_back(config);
        }
        results.count = results.parts.size();
    } else if (name == GRAPH_ENGINES) {
        put(content, name, 1);
    } else if (name == CONFIG_WORKSPACE) {
        put(content, name, workspace_bytes(content));
    } else if (name == PLAN_WORKSPACE) {
        put(content, name, workspace_bytes(part(content, {PLAN_CONFIG})));
    } else if (name == PLAN_JSON) {
        std::string text = "{\"engine\": 0}";
        auto &value = content->values[name];
        value.bytes.assign(text.c_str(), text.c_str() + text.size() + 1);
        value.count = value.bytes.size();
    }
}
}  // namespace

EXPORT size_t cudnnGetVersion() { return 92400; }
EXPORT size_t cudnnGetCudartVersion() { return 13000; }
EXPORT int cudnnGetProperty(int which, int *value) { return *value = which == 0 ? 9 : which == 1 ? 24 : 0, 0; }
EXPORT const char *cudnnGetErrorString(int) { return "an error of the null cuDNN"; }
EXPORT void cudnnGetLastErrorString(char *text, size_t bytes) { if (bytes) *text = 0; }
EXPORT int cudnnCreate(void **handle) {
    nullcuda_make_context();
    return *handle = new Handle, 0;
}
EXPORT int cudnnDestroy(void *handle) { return delete static_cast<Handle *>(handle), 0; }
EXPORT int cudnnSetStream(void *handle, void *stream) { return static_cast<Handle *>(handle)->stream = stream, 0; }
EXPORT int cudnnGetStream(void *handle, void **stream) { return *stream = static_cast<Handle *>(handle)->stream, 0; }

EXPORT int cudnnBackendCreateDescriptor(int, void **made) { return *made = new Descriptor, 0; }
EXPORT int cudnnBackendDestroyDescriptor(void *descriptor) { return delete static_cast<Descriptor *>(descriptor), 0; }
EXPORT int cudnnBackendFinalize(void *) { return 0; }
EXPORT int cudnnBackendSetAttribute(void *descriptor, int name, int type, int64_t count, const void *items) {
    auto &value = static_cast<Descriptor *>(descriptor)->content->values[name];
    value = {};
    value.count = count;
    if (type == DESCRIPTOR_TYPE) {
        for (int64_t i = 0; i < count; ++i)
            if (auto *each = static_cast<Descriptor *const *>(items)[i]) value.parts.push_back(each->content);
    } else if (items) {
        auto *first = static_cast<const char *>(items);
        value.bytes.assign(first, first + count * attribute_bytes(type));
    }
    return 0;
}
EXPORT int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t room, int64_t *count, void *items) {
    auto content = static_cast<Descriptor *>(descriptor)->content;
    work_out(content, name);
    auto &value = content->values[name];
    if (count) *count = value.count;
    if (!items || room == 0) return 0;
    int64_t given = std::min(value.count, room);
    if (type == DESCRIPTOR_TYPE) {
        auto **targets = static_cast<Descriptor **>(items);
        for (int64_t i = 0; i < given && i < int64_t(value.parts.size()); ++i)
            if (targets[i]) targets[i]->content = value.parts[i];
        if (count) *count = given;
    } else {
        memcpy(items, value.bytes.data(), std::min(value.bytes.size(), given * attribute_bytes(type)));
    }
    return 0;
}
EXPORT int cudnnBackendExecute(void *handle, void *plan, void *) {
    auto work = weigh(graph_of(part(static_cast<Descriptor *>(plan)->content, {PLAN_CONFIG})));
    auto *stream = static_cast<Handle *>(handle)->stream;
    nullcuda_work(stream, work.flops, work.bytes);
    if (has_images()) {
        double bytes = LAYOUT_PASSES * (work.image_in_bytes + work.image_out_bytes);
        nullcuda_busy(stream, bytes / nullcuda_card()->memory_bytes_per_second);
    }
    return 0;
}
