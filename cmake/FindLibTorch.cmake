# Finds the LibTorch that scripts/setup unpacked from the PyPI wheel and defines the target LibTorch.
# The wheel's own CMake config demands a CUDA toolkit even for CPU programs; this one links what is used and nothing else.
#
#   DAGMOE_LIBTORCH   folder that holds include/ and lib/ (default: the newest in the download cache)
#   LibTorch_CUDA_RUNTIME_DIRS   folders with libcudart.so.13 and libcupti.so.13, which libtorch_cpu itself needs

if(NOT DAGMOE_CACHE)
  if(DEFINED ENV{DAGMOE_CACHE})
    set(DAGMOE_CACHE $ENV{DAGMOE_CACHE})
  else()
    set(DAGMOE_CACHE $ENV{HOME}/.cache/dagmoe)
  endif()
endif()
set(DAGMOE_LIBTORCH ${DAGMOE_CACHE}/libtorch-2.13.0/torch CACHE PATH "Folder with LibTorch's include/ and lib/")

find_path(LibTorch_INCLUDE_DIR ATen/core/Tensor.h PATHS ${DAGMOE_LIBTORCH}/include NO_DEFAULT_PATH)
find_library(LibTorch_CPU_LIBRARY torch_cpu PATHS ${DAGMOE_LIBTORCH}/lib NO_DEFAULT_PATH)
find_library(LibTorch_C10_LIBRARY c10 PATHS ${DAGMOE_LIBTORCH}/lib NO_DEFAULT_PATH)
find_file(LibTorch_GOMP_LIBRARY libgomp.so.1 PATHS ${DAGMOE_LIBTORCH}/lib NO_DEFAULT_PATH)

set(cuda_places /usr/local/cuda/lib64 /usr/local/cuda/extras/CUPTI/lib64 /usr/local/cuda-13.0/lib64
    ${DAGMOE_LIBTORCH}/../nvidia/cu13/lib)
find_file(LibTorch_CUDART libcudart.so.13 PATHS ${cuda_places} NO_DEFAULT_PATH)
find_file(LibTorch_CUPTI libcupti.so.13 PATHS ${cuda_places} NO_DEFAULT_PATH)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_INCLUDE_DIR LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_GOMP_LIBRARY LibTorch_CUDART LibTorch_CUPTI
  REASON_FAILURE_MESSAGE "run scripts/setup, which downloads it")

if(LibTorch_FOUND AND NOT TARGET LibTorch)
  get_filename_component(cudart_dir ${LibTorch_CUDART} DIRECTORY)
  get_filename_component(cupti_dir ${LibTorch_CUPTI} DIRECTORY)
  if(DAGMOE_CUDA)
    # Before the system's folders: the NCCL beside an older CUDA toolkit lacks functions that LibTorch calls.
    file(GLOB wheel_dirs ${DAGMOE_LIBTORCH}/../nvidia/*/lib)
  endif()
  set(LibTorch_CUDA_RUNTIME_DIRS ${wheel_dirs} ${cudart_dir} ${cupti_dir})
  list(REMOVE_DUPLICATES LibTorch_CUDA_RUNTIME_DIRS)
  add_library(LibTorch INTERFACE IMPORTED)
  target_include_directories(LibTorch SYSTEM INTERFACE ${LibTorch_INCLUDE_DIR} ${LibTorch_INCLUDE_DIR}/torch/csrc/api/include)
  # at::parallel_for is header code: without -fopenmp in the file that calls it, it silently runs on one thread.
  # The run-time library is the wheel's own, so that there is one pool of threads.
  target_compile_options(LibTorch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
  target_link_libraries(LibTorch INTERFACE ${LibTorch_CPU_LIBRARY} ${LibTorch_C10_LIBRARY} ${LibTorch_GOMP_LIBRARY})
  # libtorch_cpu has no path of its own to its two CUDA companions, hence rpath-link now and rpath for later.
  foreach(dir IN LISTS LibTorch_CUDA_RUNTIME_DIRS)
    target_link_options(LibTorch INTERFACE -Wl,-rpath-link,${dir} -Wl,-rpath,${dir})
  endforeach()
  # Old-style DT_RPATH is looked up for the libraries of a library too; the newer DT_RUNPATH is not.
  target_link_options(LibTorch INTERFACE -Wl,--disable-new-dtags)
  if(DAGMOE_CUDA)
    find_library(LibTorch_CUDA_LIBRARY torch_cuda PATHS ${DAGMOE_LIBTORCH}/lib NO_DEFAULT_PATH REQUIRED)
    find_library(LibTorch_C10_CUDA_LIBRARY c10_cuda PATHS ${DAGMOE_LIBTORCH}/lib NO_DEFAULT_PATH REQUIRED)
    # Registration happens in static initializers of torch_cuda, so it must stay linked although no symbol is named.
    target_link_options(LibTorch INTERFACE -Wl,--no-as-needed)
    target_link_libraries(LibTorch INTERFACE ${LibTorch_CUDA_LIBRARY} ${LibTorch_C10_CUDA_LIBRARY})
  endif()
endif()
