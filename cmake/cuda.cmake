# The CUDA backend: kernels of src/cuda for the architectures asked for, cuBLASLt for products, cuDNN for convolutions where it
# is found.
set(CMAKE_CUDA_ARCHITECTURES ${AIM_CUDA_ARCHITECTURES})
enable_language(CUDA)
find_package(CUDAToolkit 12.4 REQUIRED)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")

file(GLOB cuda_sources CONFIGURE_DEPENDS src/cuda/*.cu)
add_library(aim_cuda OBJECT ${cuda_sources})
target_link_libraries(aim_cuda PRIVATE aim_flags)
target_compile_options(aim_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra
                       -diag-suppress=20012>)
set(device_libraries CUDA::cudart CUDA::cublasLt stdc++)

option(AIM_CUDNN "Convolutions of the CUDA backend through cuDNN where it is found; else plain kernels serve" ON)
find_path(CUDNN_INCLUDE cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(CUDNN_LIBRARY cudnn HINTS ${CUDAToolkit_LIBRARY_DIR})
if(AIM_CUDNN AND CUDNN_INCLUDE AND CUDNN_LIBRARY)
  target_compile_definitions(aim_cuda PRIVATE AIM_CUDNN=1)
  target_include_directories(aim_cuda PRIVATE ${CUDNN_INCLUDE})
  list(APPEND device_libraries ${CUDNN_LIBRARY})
endif()
target_compile_definitions(aim_objects PRIVATE AIM_HAVE_CUDA=1)
list(APPEND all_objects $<TARGET_OBJECTS:aim_cuda>)
