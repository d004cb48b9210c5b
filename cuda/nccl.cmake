# NCCL 2.18 or newer, by which ranks on devices meet: in the toolkit, in the system, or among Python's packages
# (nvidia-nccl-cu13). Its header alone is needed; the library is opened by a run that has several ranks on devices, by its
# name or where it was found here. Sets nccl_found where there is one.
set(SWITCHYARD_NCCL AUTO CACHE STRING "Several ranks on CUDA devices: ON, OFF, or AUTO: where NCCL is found")
set(nccl_found FALSE)
unset(SWITCHYARD_NCCL_HEADER CACHE)
if(SWITCHYARD_NCCL STREQUAL AUTO OR SWITCHYARD_NCCL)
  execute_process(COMMAND python3 -c "import sysconfig; print(sysconfig.get_path('purelib'))"
    OUTPUT_VARIABLE packages OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_path(NCCL_INCLUDE nccl.h NO_CACHE
    HINTS ${CUDAToolkit_INCLUDE_DIRS} ${packages}/nvidia/nccl/include)
  find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 NO_CACHE
    HINTS ${CUDAToolkit_LIBRARY_DIR} ${packages}/nvidia/nccl/lib)
  if(NCCL_INCLUDE AND NCCL_LIBRARY)
    set(nccl_found TRUE)
    file(STRINGS ${NCCL_INCLUDE}/nccl.h version REGEX "^#define NCCL_(MAJOR|MINOR|PATCH) ")
    list(TRANSFORM version REPLACE "[^0-9]+" "")
    list(JOIN version . version)
    set(SWITCHYARD_NCCL_HEADER ${version} CACHE INTERNAL "The version of NCCL's header")
    message(STATUS "several ranks on CUDA devices: on (header of NCCL ${version}, ${NCCL_LIBRARY})")
  else()
    set(missing "several ranks on CUDA devices: off; NCCL's header: ${NCCL_INCLUDE}, library: ${NCCL_LIBRARY}")
    if(NOT SWITCHYARD_NCCL STREQUAL AUTO)
      message(FATAL_ERROR "${missing}. Install libnccl-dev, or 'pip install nvidia-nccl-cu13'")
    endif()
    message(STATUS "${missing}")
  endif()
else()
  message(STATUS "several ranks on CUDA devices: off (SWITCHYARD_NCCL)")
endif()
