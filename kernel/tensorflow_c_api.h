// The functions of TensorFlow's C API that an operator needs, found in the TensorFlow that runs.
//
// They are declared here and looked up by name. So the build needs neither headers nor libraries of
// TensorFlow, one build works with every version, and a missing function is found before anything is
// registered. On Linux one could link the library by its name, but then tools that repair wheels
// would copy TensorFlow into the wheel.
#pragma once
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#if defined(__APPLE__)
#include <mach-o/dyld.h>

#include <cstring>
#endif

extern "C" {
struct TF_Status;
struct TF_Tensor;
struct TF_OpDefinitionBuilder;
struct TF_ShapeHandle;
struct TF_ShapeInferenceContext;
struct TF_KernelBuilder;
struct TF_OpKernelConstruction;
struct TF_OpKernelContext;
}

// As in tensorflow/c/tf_datatype.h and tf_status.h, whose values are part of the ABI.
enum TF_DataType : int {
    TF_FLOAT = 1,
    TF_DOUBLE = 2,
    TF_INT32 = 3,
    TF_INT64 = 9,
    TF_BOOL = 10,
    TF_BFLOAT16 = 14,
    TF_HALF = 19,
};
enum TF_Code : int { TF_OK = 0, TF_INVALID_ARGUMENT = 3, TF_INTERNAL = 13 };

using TF_Create = void*(TF_OpKernelConstruction*);
using TF_Compute = void(void*, TF_OpKernelContext*);
using TF_Delete = void(void*);
using TF_InferShape = void(TF_ShapeInferenceContext*, TF_Status*);

// FUNCTION(result, name, arguments), as in tensorflow/c/{tf_status,tf_tensor,ops,kernels}.h.
#define TENSORFLOW_C_API(FUNCTION)                                                                 \
    FUNCTION(TF_Status*, TF_NewStatus, ())                                                         \
    FUNCTION(void, TF_DeleteStatus, (TF_Status*))                                                  \
    FUNCTION(void, TF_SetStatus, (TF_Status*, TF_Code, const char* message))                       \
    FUNCTION(TF_Code, TF_GetCode, (const TF_Status*))                                              \
    FUNCTION(const char*, TF_Message, (const TF_Status*))                                          \
                                                                                                   \
    FUNCTION(void, TF_DeleteTensor, (TF_Tensor*))                                                  \
    FUNCTION(TF_DataType, TF_TensorType, (const TF_Tensor*))                                       \
    FUNCTION(int, TF_NumDims, (const TF_Tensor*))                                                  \
    FUNCTION(int64_t, TF_Dim, (const TF_Tensor*, int))                                             \
    FUNCTION(void*, TF_TensorData, (const TF_Tensor*))                                             \
    FUNCTION(int64_t, TF_TensorElementCount, (const TF_Tensor*))                                   \
                                                                                                   \
    FUNCTION(TF_OpDefinitionBuilder*, TF_NewOpDefinitionBuilder, (const char* name))               \
    FUNCTION(void, TF_OpDefinitionBuilderAddAttr, (TF_OpDefinitionBuilder*, const char*))          \
    FUNCTION(void, TF_OpDefinitionBuilderAddInput, (TF_OpDefinitionBuilder*, const char*))         \
    FUNCTION(void, TF_OpDefinitionBuilderAddOutput, (TF_OpDefinitionBuilder*, const char*))        \
    FUNCTION(void, TF_OpDefinitionBuilderSetShapeInferenceFunction,                                \
             (TF_OpDefinitionBuilder*, TF_InferShape*))                                            \
    FUNCTION(void, TF_RegisterOpDefinition, (TF_OpDefinitionBuilder*, TF_Status*))                 \
                                                                                                   \
    FUNCTION(TF_ShapeHandle*, TF_NewShapeHandle, ())                                               \
    FUNCTION(void, TF_DeleteShapeHandle, (TF_ShapeHandle*))                                        \
    FUNCTION(TF_ShapeHandle*, TF_ShapeInferenceContextScalar, (TF_ShapeInferenceContext*))         \
    FUNCTION(void, TF_ShapeInferenceContextGetInput,                                               \
             (TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*))                        \
    FUNCTION(void, TF_ShapeInferenceContextSetOutput,                                              \
             (TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*))                        \
    FUNCTION(void, TF_ShapeInferenceContextSetUnknownShape,                                        \
             (TF_ShapeInferenceContext*, TF_Status*))                                              \
    FUNCTION(void, TF_ShapeInferenceContext_GetAttrType,                                           \
             (TF_ShapeInferenceContext*, const char* name, TF_DataType*, TF_Status*))              \
                                                                                                   \
    FUNCTION(TF_KernelBuilder*, TF_NewKernelBuilder,                                               \
             (const char* op, const char* device, TF_Create*, TF_Compute*, TF_Delete*))            \
    FUNCTION(void, TF_RegisterKernelBuilder, (const char* name, TF_KernelBuilder*, TF_Status*))    \
    FUNCTION(void, TF_OpKernelConstruction_GetAttrSize,                                            \
             (TF_OpKernelConstruction*, const char* name, int32_t* list, int32_t* bytes,           \
              TF_Status*))                                                                         \
    FUNCTION(void, TF_OpKernelConstruction_GetAttrString,                                          \
             (TF_OpKernelConstruction*, const char* name, char*, size_t, TF_Status*))              \
    FUNCTION(void, TF_OpKernelConstruction_Failure, (TF_OpKernelConstruction*, TF_Status*))        \
                                                                                                   \
    FUNCTION(int, TF_NumInputs, (TF_OpKernelContext*))                                             \
    FUNCTION(void, TF_GetInput, (TF_OpKernelContext*, int, TF_Tensor**, TF_Status*))               \
    FUNCTION(void, TF_SetOutput, (TF_OpKernelContext*, int, const TF_Tensor*, TF_Status*))         \
    FUNCTION(TF_Tensor*, TF_AllocateOutput,                                                        \
             (TF_OpKernelContext*, int, TF_DataType, const int64_t* dims, int rank, size_t bytes,  \
              TF_Status*))                                                                         \
    FUNCTION(TF_Tensor*, TF_ForwardInputOrAllocateOutput,                                          \
             (TF_OpKernelContext*, const int* candidates, int count, int output,                   \
              const int64_t* dims, int rank, int* forwarded, TF_Status*))                          \
    FUNCTION(void, TF_OpKernelContext_Failure, (TF_OpKernelContext*, TF_Status*))

#define XENTX_POINTER(result, name, arguments) static result(*name) arguments = nullptr;
TENSORFLOW_C_API(XENTX_POINTER)
#undef XENTX_POINTER

// TensorFlow's library, if it is loaded. Python loads it without exporting its symbols to other
// libraries, so they are looked up in this library.
inline void* tensorflow_library() {
#if defined(__APPLE__)
    for (uint32_t i = 0; i < _dyld_image_count(); ++i) {
        const char* path = _dyld_get_image_name(i);
        if (std::strstr(path, "/libtensorflow_framework.2.dylib")) {
            return dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
        }
    }
    return nullptr;
#else
    return dlopen("libtensorflow_framework.so.2", RTLD_LAZY | RTLD_NOLOAD);
#endif
}

// Whether TensorFlow is loaded and has all functions that are needed.
inline bool find_tensorflow() {
    void* library = tensorflow_library();
    if (!library) return false;
    bool found = true;
#define XENTX_FIND(result, name, arguments) \
    found &= (name = reinterpret_cast<decltype(name)>(dlsym(library, #name))) != nullptr;
    TENSORFLOW_C_API(XENTX_FIND)
#undef XENTX_FIND
    return found;
}
