/* Exact distance from the voxels of a regular grid to a triangle mesh.
 *
 * The foot of a perpendicular lies in a face or on an edge; by Pythagoras its squared distance is that of a corner of
 * this face or edge less the square of the way from the corner to the foot. That way is short: nowhere in a triangle is
 * the nearest corner farther off than its circumradius (half its longest side where it is obtuse). So only vertices
 * whose squared distance, less the square of this reach, is below that of the nearest vertex can own the foot. They are
 * few, more so the farther the voxel is, and for each the faces around it are tried: its fan.
 *
 * Which vertices can matter is found for all voxels of a box at once, and the box is halved until few voxels are left:
 * vertex p stays when |x - p|^2 - reach^2 < |x - q|^2 for some x of the box, where q is the one nearest to its middle.
 * The difference of the two squares is linear in x, so its least value is known exactly.
 *
 * Distances are single precision; vertices should be given around the origin. No vertex is left out on rounding alone
 * (see MARGIN), so the result depends neither on the order of faces nor on how the grid is cut into slabs: threads are
 * the caller's, one call a slab, with the GIL released.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 8
#define FEW_VOXELS 32          /* a box of so many is not halved any more */
#define FEW_BLOCKS 2           /* nor one that so few blocks of vertices concern */
#define FAR_AWAY 1e15f         /* where an unused lane lies; its square is still finite */
#define NOWHERE (4 * FAR_AWAY * FAR_AWAY)
#define FARTHEST 0x5368D4A5u   /* bits of 1e12f, the bound of coordinates; those of infinity and NaN are greater */
#define MARGIN 2e-6f           /* part of a squared distance that comparisons allow for rounding, and far above it */
#define ALIGNMENT 64           /* a cache line */
#define NAME "m2s_runtime._mesh_distance.mesh"

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

INLINE float above(float x, float y) { return x > y ? x : y; }
INLINE float below(float x, float y) { return x < y ? x : y; }

INLINE float least_of(const float *lanes) {
    float least = lanes[0];
    for (int k = 1; k < LANES; k++) least = below(least, lanes[k]);
    return least;
}

/* Faces around a vertex, seen from it: the point a * u + b * v of a face has both coordinates positive, and a + b < 1.
 * All zero in an unused lane, which leaves the vertex itself. */
typedef struct {
    float u[3][LANES], v[3][LANES];          /* the edges that leave the vertex */
    float per_uu[LANES], per_vv[LANES];      /* reciprocals of their squared lengths, 0 where they have none */
    float a[3][LANES], b[3][LANES], ab[3][LANES]; /* what gives these coordinates and their sum */
    float n[3][LANES];                       /* unit normal */
} Fan;

/* Vertices, as many as there are lanes: mm, squared mm, which vertex. */
typedef struct {
    float x[LANES], y[LANES], z[LANES], reach[LANES];
    int32_t id[LANES];
} Block;

/* Vertices, packed into blocks; the last is filled up with some that are near to nothing. */
typedef struct {
    Block *blocks;
    Py_ssize_t count; /* of blocks */
} Sites;

typedef struct {
    Sites sites;
    Fan *fans;
    int32_t *first; /* fans first[id] to first[id + 1] are those of a vertex */
    void *raw_fans, *raw_blocks;
    float margin; /* squared mm */
} Mesh;

/* ------------------------------------------------------------------------------------------------ construction */

static double dot(const double *p, const double *q) { return p[0] * q[0] + p[1] * q[1] + p[2] * q[2]; }

static void cross(const double *p, const double *q, double *out) {
    for (int i = 0; i < 3; i++) {
        int j = (i + 1) % 3, k = (i + 2) % 3;
        out[i] = p[j] * q[k] - p[k] * q[j];
    }
}

/* Square of the largest distance from a point of a triangle to its nearest corner, from its squared sides and the
 * square of twice its area; an obtuse one counts as if its right angle were (half its longest side). */
static double square_reach(double aa, double bb, double cc, double area) {
    double longest = fmax(aa, fmax(bb, cc));
    return 2 * longest < aa + bb + cc && area > 0 ? aa * bb * cc / (4 * area) : longest / 4;
}

static void fill_lane(Fan *fan, int lane, const double *u, const double *v, const double *n, double area) {
    double uu = dot(u, u), uv = dot(u, v), vv = dot(v, v);
    int flat = area <= 1e-12 * uu * vv; /* a needle: its edges are all there is */
    for (int i = 0; i < 3; i++) {
        double a = (vv * u[i] - uv * v[i]) / area, b = (uu * v[i] - uv * u[i]) / area;
        fan->u[i][lane] = (float)u[i];
        fan->v[i][lane] = (float)v[i];
        fan->a[i][lane] = flat ? 0.f : (float)a;
        fan->b[i][lane] = flat ? 0.f : (float)b;
        fan->ab[i][lane] = flat ? 0.f : (float)(a + b);
        fan->n[i][lane] = flat ? 0.f : (float)(n[i] / sqrt(area));
    }
    fan->per_uu[lane] = uu > 0 ? (float)(1 / uu) : 0.f;
    fan->per_vv[lane] = vv > 0 ? (float)(1 / vv) : 0.f;
}

/* Put a face into the fan of each of its corners. `used` counts the lanes of each vertex so far. */
static void add_face(Mesh *mesh, const float *points, const int32_t *face, float *reach, int32_t *used) {
    double side[3][3], back[3], n[3], length[3];
    for (int c = 0; c < 3; c++) {
        for (int i = 0; i < 3; i++)
            side[c][i] = (double)points[3 * (size_t)face[(c + 1) % 3] + i] - points[3 * (size_t)face[c] + i];
        length[c] = dot(side[c], side[c]);
    }
    cross(side[0], side[1], n);
    double area = dot(n, n), farthest = square_reach(length[0], length[1], length[2], area);
    for (int c = 0; c < 3; c++) {
        int32_t p = face[c];
        for (int i = 0; i < 3; i++) back[i] = -side[(c + 2) % 3][i];
        fill_lane(mesh->fans + mesh->first[p] + used[p] / LANES, used[p] % LANES, side[c], back, n, area);
        used[p]++;
        reach[p] = above(reach[p], (float)farthest);
    }
}

/* ------------------------------------------------------------------------------------------------------ search */

/* Squared distance from w to the segment from the origin to e, where `along` = w.e / e.e before clamping. */
INLINE float to_segment(float wx, float wy, float wz, float ex, float ey, float ez, float along) {
    along = below(above(along, 0.f), 1.f);
    wx -= along * ex, wy -= along * ey, wz -= along * ez;
    return wx * wx + wy * wy + wz * wz;
}

/* Least squared distance from w, as seen from the vertex, to its faces, or to as much of them as this vertex owns. */
INLINE float to_fan(const Fan *fan, float wx, float wy, float wz) {
    float found[LANES];
#pragma omp simd
    for (int k = 0; k < LANES; k++) {
        float ux = fan->u[0][k], uy = fan->u[1][k], uz = fan->u[2][k];
        float vx = fan->v[0][k], vy = fan->v[1][k], vz = fan->v[2][k];
        float wu = wx * ux + wy * uy + wz * uz, wv = wx * vx + wy * vy + wz * vz;
        float edge = below(to_segment(wx, wy, wz, ux, uy, uz, wu * fan->per_uu[k]),
                           to_segment(wx, wy, wz, vx, vy, vz, wv * fan->per_vv[k]));
        float a = wx * fan->a[0][k] + wy * fan->a[1][k] + wz * fan->a[2][k];
        float b = wx * fan->b[0][k] + wy * fan->b[1][k] + wz * fan->b[2][k];
        float ab = wx * fan->ab[0][k] + wy * fan->ab[1][k] + wz * fan->ab[2][k];
        float plane = wx * fan->n[0][k] + wy * fan->n[1][k] + wz * fan->n[2][k];
        found[k] = below(below(a, b), 1.f - ab) > 0.f ? plane * plane : edge;
    }
    return least_of(found);
}

typedef struct {
    const Mesh *mesh;
    float *out;
    Py_ssize_t shape[3];
    double origin[3], spacing[3];
    float *key; /* room for a number for each vertex */
} Slab;

typedef struct {
    Py_ssize_t low[3], size[3];
} Box;

INLINE float place(const Slab *slab, int axis, double index) {
    return (float)(slab->origin[axis] + index * slab->spacing[axis]);
}

/* Squared distances of a point to the vertices of a block; what they may come to over their fans goes to `key`. */
INLINE void to_block(const Block *block, float x, float y, float z, float *restrict squared, float *restrict key) {
#pragma omp simd
    for (int k = 0; k < LANES; k++) {
        float dx = x - block->x[k], dy = y - block->y[k], dz = z - block->z[k];
        squared[k] = dx * dx + dy * dy + dz * dz;
        key[k] = squared[k] * (1.f - MARGIN) - block->reach[k];
    }
}

/* Distance of a voxel to the nearest of the sites that may own its foot, and to their fans. */
INLINE float nearest(const Slab *slab, const Sites *sites, float x, float y, float z) {
    const Mesh *mesh = slab->mesh;
    float lanes[LANES], best;
    for (int k = 0; k < LANES; k++) lanes[k] = NOWHERE;
    for (Py_ssize_t s = 0; s < sites->count; s++) {
        float squared[LANES];
        to_block(sites->blocks + s, x, y, z, squared, slab->key + s * LANES);
#pragma omp simd
        for (int k = 0; k < LANES; k++) lanes[k] = below(lanes[k], squared[k]);
    }
    best = least_of(lanes);
    for (Py_ssize_t s = 0; s < sites->count; s++) {
        const Block *block = sites->blocks + s;
        const float *key = slab->key + s * LANES;
        unsigned near = 0;
#pragma omp simd reduction(| : near)
        for (int k = 0; k < LANES; k++) near |= (unsigned)(key[k] <= best + mesh->margin) << k;
        for (int k = 0; near >> k; k++) {
            if (!(near >> k & 1) || key[k] > best + mesh->margin) continue;
            float wx = x - block->x[k], wy = y - block->y[k], wz = z - block->z[k];
            for (int32_t fan = mesh->first[block->id[k]]; fan < mesh->first[block->id[k] + 1]; fan++)
                best = below(best, to_fan(mesh->fans + fan, wx, wy, wz));
        }
    }
    return sqrtf(best);
}

/* Write the distance of each voxel of a box, out of those to the sites that concern it. */
INLINE void measure(const Slab *slab, const Box *box, const Sites *sites) {
    for (Py_ssize_t i = box->low[0]; i < box->low[0] + box->size[0]; i++)
        for (Py_ssize_t j = box->low[1]; j < box->low[1] + box->size[1]; j++) {
            float *row = slab->out + (i * slab->shape[1] + j) * slab->shape[2];
            float x = place(slab, 0, (double)i), y = place(slab, 1, (double)j);
            for (Py_ssize_t k = box->low[2]; k < box->low[2] + box->size[2]; k++)
                row[k] = nearest(slab, sites, x, y, place(slab, 2, (double)k));
        }
}

/* Write a vertex behind the `count` that are there; the caller counts it, or not. */
INLINE void put(Block *blocks, Py_ssize_t count, float x, float y, float z, float reach, int32_t id) {
    Block *block = blocks + count / LANES;
    Py_ssize_t k = count % LANES;
    block->x[k] = x, block->y[k] = y, block->z[k] = z, block->reach[k] = reach, block->id[k] = id;
}

/* How many blocks `count` vertices take, the last one filled up. */
static Py_ssize_t filled_up(Block *blocks, Py_ssize_t count) {
    while (count % LANES) put(blocks, count++, FAR_AWAY, FAR_AWAY, FAR_AWAY, 0.f, 0);
    return count / LANES;
}

/* Those of `from` that can own the foot of a voxel in the box; `to` has room for all of them. */
INLINE void choose(const Slab *slab, const Box *box, const Sites *from, Sites *to) {
    float at[3], side[3], lanes[LANES], least;
    for (int i = 0; i < 3; i++) {
        at[i] = place(slab, i, (double)box->low[i] + (double)(box->size[i] - 1) / 2);
        side[i] = (float)((double)(box->size[i] - 1) * slab->spacing[i]);
    }
    for (int k = 0; k < LANES; k++) lanes[k] = NOWHERE;
    for (Py_ssize_t s = 0; s < from->count; s++) {
        float unused[LANES], *squared = slab->key + s * LANES;
        to_block(from->blocks + s, at[0], at[1], at[2], squared, unused);
#pragma omp simd
        for (int k = 0; k < LANES; k++) lanes[k] = below(lanes[k], squared[k]);
    }
    least = least_of(lanes);
    Py_ssize_t q = 0, count = 0;
    while (q < from->count * LANES - 1 && slab->key[q] > least) q++;
    const Block *middle = from->blocks + q / LANES;
    float qx = middle->x[q % LANES], qy = middle->y[q % LANES], qz = middle->z[q % LANES];
    put(to->blocks, count++, qx, qy, qz, middle->reach[q % LANES], middle->id[q % LANES]);
    slab->key[q] = NOWHERE;
    least += slab->mesh->margin;
    for (Py_ssize_t s = 0; s < from->count; s++) {
        const Block *block = from->blocks + s;
        const float *squared = slab->key + s * LANES;
        int32_t stays[LANES], any = 0;
#pragma omp simd reduction(| : any)
        for (int k = 0; k < LANES; k++) {
            /* Twice the farthest that a voxel of the box is from its middle towards p and away from q. */
            float swing = side[0] * fabsf(block->x[k] - qx) + side[1] * fabsf(block->y[k] - qy) +
                          side[2] * fabsf(block->z[k] - qz);
            stays[k] = squared[k] * (1.f - MARGIN) - block->reach[k] - swing * (1.f + MARGIN) <= least;
            any |= stays[k];
        }
        if (!any) continue;
        for (int k = 0; k < LANES; k++) { /* no branch: half of them stay, in no order */
            put(to->blocks, count, block->x[k], block->y[k], block->z[k], block->reach[k], block->id[k]);
            count += stays[k];
        }
    }
    to->count = filled_up(to->blocks, count);
}

typedef void Descend(const Slab *slab, const Box *box, const Sites *sites);

/* Halve the box along its longest side until it is small; `again` is the caller, compiled for the same processor. */
INLINE void halve(const Slab *slab, const Box *box, const Sites *sites, Descend *again) {
    Sites chosen = {sites->blocks + sites->count, 0};
    choose(slab, box, sites, &chosen);
    if (chosen.count <= FEW_BLOCKS || box->size[0] * box->size[1] * box->size[2] <= FEW_VOXELS) {
        measure(slab, box, &chosen);
        return;
    }
    int axis = 0;
    for (int i = 1; i < 3; i++) {
        int longer = (double)box->size[i] * slab->spacing[i] > (double)box->size[axis] * slab->spacing[axis];
        if (box->size[i] > 1 && (longer || box->size[axis] == 1)) axis = i;
    }
    Box part = *box;
    part.size[axis] /= 2;
    again(slab, &part, &chosen);
    part.low[axis] += part.size[axis];
    part.size[axis] = box->size[axis] - part.size[axis];
    again(slab, &part, &chosen);
}

static void descend_baseline(const Slab *slab, const Box *box, const Sites *sites) {
    halve(slab, box, sites, descend_baseline);
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
__attribute__((target("avx2,fma"))) static void descend_avx2(const Slab *slab, const Box *box, const Sites *sites) {
    halve(slab, box, sites, descend_avx2);
}
#define HAVE_AVX2() (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#else
#define descend_avx2 descend_baseline
#define HAVE_AVX2() 0
#endif

/* Room for the sites of a box, of its half, of its quarter and so on, each of which may be all of them. */
static size_t room_of(const Slab *slab) {
    size_t depth = 2;
    for (int i = 0; i < 3; i++)
        for (Py_ssize_t size = slab->shape[i]; size > 1; size -= size / 2) depth++;
    /* One more of each, for `choose` writes behind the last that stays. */
    return depth * ((size_t)slab->mesh->sites.count + 1) * sizeof(Block);
}

static int fill(Slab *slab) {
    Box whole = {{0, 0, 0}, {slab->shape[0], slab->shape[1], slab->shape[2]}};
    Sites sites = {malloc(room_of(slab)), 0};
    slab->key = malloc(LANES * sizeof(float) * (size_t)slab->mesh->sites.count);
    int ready = sites.blocks && slab->key;
    if (ready) {
        choose(slab, &whole, &slab->mesh->sites, &sites);
        if (HAVE_AVX2()) descend_avx2(slab, &whole, &sites);
        else descend_baseline(slab, &whole, &sites);
    }
    free(slab->key);
    free(sites.blocks);
    return ready;
}

/* ------------------------------------------------------------------------------------------------------ Python */

static void *aligned(size_t size, void **raw) {
    *raw = calloc(1, size + ALIGNMENT);
    return *raw ? (char *)*raw + (ALIGNMENT - (uintptr_t)*raw % ALIGNMENT) : NULL;
}

static void release(Mesh *mesh) {
    if (!mesh) return;
    free(mesh->first);
    free(mesh->raw_fans);
    free(mesh->raw_blocks);
    free(mesh);
}

static void release_capsule(PyObject *capsule) { release(PyCapsule_GetPointer(capsule, NAME)); }

/* Let each vertex that has faces know its fans; `used` holds how many faces it has, and is cleared. */
static int32_t share_fans(Mesh *mesh, int32_t *used, int32_t vertex_count) {
    int32_t fans = 0, sites = 0;
    for (int32_t p = 0; p < vertex_count; p++) {
        mesh->first[p] = fans;
        fans += (used[p] + LANES - 1) / LANES;
        sites += used[p] > 0;
        used[p] = 0;
    }
    mesh->first[vertex_count] = fans;
    return sites;
}

static void gather(Mesh *mesh, const float *points, const float *reach, int32_t vertex_count) {
    Block *blocks = mesh->sites.blocks;
    Py_ssize_t count = 0;
    for (int32_t p = 0; p < vertex_count; p++) {
        const float *at = points + 3 * (size_t)p;
        if (mesh->first[p] < mesh->first[p + 1]) put(blocks, count++, at[0], at[1], at[2], reach[p], p);
    }
    mesh->sites.count = filled_up(blocks, count);
}

static Mesh *grow(const float *points, int32_t vertex_count, const int32_t *faces, int32_t face_count, float farthest) {
    Mesh *mesh = calloc(1, sizeof *mesh);
    int32_t *used = calloc((size_t)vertex_count, sizeof *used);
    float *reach = calloc((size_t)vertex_count, sizeof *reach);
    int ready = 0;
    if (mesh) mesh->first = malloc(((size_t)vertex_count + 1) * sizeof *mesh->first);
    if (mesh && mesh->first && used && reach) {
        for (size_t c = 0; c < 3 * (size_t)face_count; c++) used[faces[c]]++;
        size_t blocks = ((size_t)share_fans(mesh, used, vertex_count) + LANES - 1) / LANES;
        mesh->fans = aligned(sizeof(Fan) * (size_t)mesh->first[vertex_count], &mesh->raw_fans);
        mesh->sites.blocks = aligned(sizeof(Block) * blocks, &mesh->raw_blocks);
        ready = mesh->fans && mesh->sites.blocks;
        if (ready) {
            for (int32_t f = 0; f < face_count; f++) add_face(mesh, points, faces + 3 * (size_t)f, reach, used);
            gather(mesh, points, reach, vertex_count);
            for (size_t c = 0; c < 3 * (size_t)vertex_count; c++) farthest = above(farthest, fabsf(points[c]));
            mesh->margin = MARGIN * farthest * farthest;
        }
    }
    free(used);
    free(reach);
    if (ready) return mesh;
    release(mesh);
    return NULL;
}

static const char *flaw(const Py_buffer *points, const Py_buffer *faces) {
    if (points->len % (3 * sizeof(float)) || faces->len % (3 * sizeof(int32_t))) return "rows of three are needed";
    size_t vertex_count = (size_t)points->len / (3 * sizeof(float));
    size_t corner_count = (size_t)faces->len / sizeof(int32_t);
    /* Each fan has a lane at least for each corner, and both are counted in 32 bits. */
    if (!corner_count || corner_count > INT32_MAX || vertex_count > INT32_MAX - LANES)
        return "between 1 and 2^31 / 3 faces, and fewer than 2^31 vertices, are needed";
    /* By their bits, for this file is compiled on the understanding that floats are finite. */
    const uint32_t *bits = points->buf;
    for (size_t c = 0; c < 3 * vertex_count; c++)
        if ((bits[c] & 0x7FFFFFFFu) > FARTHEST) return "a vertex is NaN, infinite or too far away";
    const int32_t *index = faces->buf;
    for (size_t c = 0; c < corner_count; c++)
        if (index[c] < 0 || (size_t)index[c] >= vertex_count) return "a face names a vertex that does not exist";
    return NULL;
}

static PyObject *py_grow(PyObject *module, PyObject *args) {
    Py_buffer points, faces;
    float reach;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*f", &points, &faces, &reach)) return NULL;
    const char *wrong = flaw(&points, &faces);
    Mesh *mesh = NULL;
    if (!wrong) {
        int32_t face_count = (int32_t)(faces.len / (Py_ssize_t)(3 * sizeof(int32_t)));
        int32_t vertex_count = (int32_t)(points.len / (Py_ssize_t)(3 * sizeof(float)));
        Py_BEGIN_ALLOW_THREADS
        mesh = grow(points.buf, vertex_count, faces.buf, face_count, reach);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&points);
    PyBuffer_Release(&faces);
    if (wrong) {
        PyErr_SetString(PyExc_ValueError, wrong);
        return NULL;
    }
    if (!mesh) return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(mesh, NAME, release_capsule);
    if (!capsule) release(mesh);
    return capsule;
}

static PyObject *py_fill(PyObject *module, PyObject *args) {
    PyObject *capsule;
    Py_buffer out;
    Slab slab;
    (void)module;
    if (!PyArg_ParseTuple(args, "Ow*(nnn)(ddd)(ddd)", &capsule, &out, &slab.shape[0], &slab.shape[1], &slab.shape[2],
                          &slab.origin[0], &slab.origin[1], &slab.origin[2], &slab.spacing[0], &slab.spacing[1],
                          &slab.spacing[2]))
        return NULL;
    slab.mesh = PyCapsule_GetPointer(capsule, NAME);
    slab.out = out.buf;
    Py_ssize_t room = out.len / (Py_ssize_t)sizeof(float);
    int fits = 1, done = 1;
    for (int i = 0; i < 3; i++) {
        fits = fits && slab.shape[i] > 0 && slab.shape[i] <= room;
        if (fits) room /= slab.shape[i];
    }
    if (slab.mesh && fits) {
        Py_BEGIN_ALLOW_THREADS
        done = fill(&slab);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&out);
    if (!slab.mesh) return NULL;
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "the shape does not fit the buffer");
        return NULL;
    }
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"grow", py_grow, METH_VARARGS,
     "grow(points, faces, reach): what `fill` needs of float32 (V, 3) points and int32 (F, 3) faces; no query "
     "coordinate may exceed `reach`."},
    {"fill", py_fill, METH_VARARGS, "fill(mesh, out, shape, origin, spacing): write distances to float32 `out`."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_mesh_distance", "Exact distance from a grid to a triangle mesh.", 0, methods, NULL, NULL,
    NULL, NULL,
};

PyMODINIT_FUNC PyInit__mesh_distance(void) { return PyModuleDef_Init(&definition); }
