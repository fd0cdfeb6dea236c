/* Signed distance from the voxels of a grid to the marching-cubes surface of a mask, on a GPU; see device_csdg.py.
 *
 * The surface of a mask needs no mesh: its corners lie at the middles of cell edges or of cells, and what a cell of
 * 2 x 2 x 2 voxels holds is a function of its eight bits, so there is one table of triangles for all cells. Cells lie
 * in tiles of 4 x 4 x 2, tiles in blocks of 4 x 4 x 4; both know the box around their triangles. A voxel begins with
 * the cell nearest to the middle of its brick of 4 x 4 x 2 voxels (a warp) and looks into every block, tile and cell whose
 * box is nearer than what it has. Boxes and their distances are multiples of half a voxel and thus free of rounding, so
 * nothing is missed; no thread waits for another, no order is left to chance, and without fused multiply-adds every
 * operation is that of IEEE 754: the same bits on any machine.
 *
 * The program puts before this text: X, Y, Z, PLANES (voxels of the grid, planes of the super-resolved wall), SX, SY,
 * SZ (mm), and KERNEL, DEVICE, THREAD (qualifiers, number of the thread). Arrays of a batch hold one heart after the
 * other.
 */
#define TILES_X ((X + 4) / 4) /* of the X + 1 cells along x */
#define TILES_Y ((Y + 4) / 4)
#define TILES_Z ((Z + 2) / 2)
#define TILES (TILES_X * TILES_Y * TILES_Z)
#define BLOCKS_X ((TILES_X + 3) / 4)
#define BLOCKS_Y ((TILES_Y + 3) / 4)
#define BLOCKS_Z ((TILES_Z + 3) / 4)
#define BLOCKS (BLOCKS_X * BLOCKS_Y * BLOCKS_Z)
#define BRICKS_X ((X + 3) / 4)
#define BRICKS_Y ((Y + 3) / 4)
#define BRICKS_Z ((Z + 1) / 2)
#define BRICKS (BRICKS_X * BRICKS_Y * BRICKS_Z)
#define GROUPS_X ((BRICKS_X + 3) / 4) /* of 4 x 4 x 2 bricks, as a brick is of voxels */
#define GROUPS_Y ((BRICKS_Y + 3) / 4)
#define GROUPS_Z ((BRICKS_Z + 1) / 2)
#define GROUPS (GROUPS_X * GROUPS_Y * GROUPS_Z)
#define VOXELS (X * Y * Z)
#define FAR_AWAY 1e15f    /* its square is finite */
#define GREATEST 3.4e38f  /* what is not below is infinite or NaN */
#define MOST 9            /* triangles of a cell */
#define CONSTANTS 20      /* floats of a triangle */

typedef struct {
    float low[3], high[3]; /* mm; voxel 0 is at 0 */
} Box;

/* What is known of one heart. */
typedef struct {
    unsigned long long tiles[BLOCKS]; /* which tiles of a block hold triangles */
    unsigned cells[TILES];            /* which cells of a tile do */
    Box block_box[BLOCKS], tile_box[TILES];
    int seed[BRICKS];                 /* cell nearest to the middle of a brick, tile * 32 + number; -1 for none */
    unsigned char config[TILES][32];  /* the eight bits of each cell */
    unsigned char mask[VOXELS];
} Heart;

/* What the cells of each configuration hold, seen from their first voxel. */
typedef struct {
    int count[256];
    Box extent[256];
    float triangle[256][MOST][CONSTANTS]; /* corner, two edges, unit normal; products of the edges; reciprocals */
} Table;

DEVICE void clear(Box *box) {
    for (int i = 0; i < 3; i++) box->low[i] = FAR_AWAY, box->high[i] = -FAR_AWAY;
}

DEVICE void join(Box *box, const Box *other, float x, float y, float z) {
    const float at[3] = {x, y, z};
    for (int i = 0; i < 3; i++) {
        box->low[i] = fminf(box->low[i], other->low[i] + at[i]);
        box->high[i] = fmaxf(box->high[i], other->high[i] + at[i]);
    }
}

DEVICE float outside(float low, float high, float at) { return fmaxf(fmaxf(low - at, at - high), 0.f); }

/* Squared distance to a box. */
DEVICE float to_box(const Box *box, float x, float y, float z) {
    float dx = outside(box->low[0], box->high[0], x), dy = outside(box->low[1], box->high[1], y);
    float dz = outside(box->low[2], box->high[2], z);
    return dx * dx + dy * dy + dz * dz;
}

/* Squared distance from w to the segment from the origin to e, where `along` = w.e / e.e before clamping. */
DEVICE float to_segment(float wx, float wy, float wz, float ex, float ey, float ez, float along) {
    along = fminf(fmaxf(along, 0.f), 1.f);
    wx -= along * ex, wy -= along * ey, wz -= along * ez;
    return wx * wx + wy * wy + wz * wz;
}

/* Squared distance from a point, as seen from the first voxel of the cell, to a triangle of the table. */
DEVICE float to_triangle(const float *c, float x, float y, float z) {
    float wx = x - c[0], wy = y - c[1], wz = z - c[2];
    float ux = c[3], uy = c[4], uz = c[5], vx = c[6], vy = c[7], vz = c[8], uu = c[12], uv = c[13], vv = c[14];
    float wu = wx * ux + wy * uy + wz * uz, wv = wx * vx + wy * vy + wz * vz;
    float s = (vv * wu - uv * wv) * c[18], t = (uu * wv - uv * wu) * c[18];
    if (s > 0.f && t > 0.f && 1.f - s - t > 0.f) {
        float plane = wx * c[9] + wy * c[10] + wz * c[11];
        return plane * plane;
    }
    float third = ((wv - uv) - (wu - uu)) * c[17];
    float edge = fminf(to_segment(wx, wy, wz, ux, uy, uz, wu * c[15]), to_segment(wx, wy, wz, vx, vy, vz, wv * c[16]));
    return fminf(edge, to_segment(wx - ux, wy - uy, wz - uz, vx - ux, vy - uy, vz - uz, third));
}

/* Looks into cell number `cell` of a tile if its box is nearer than `best`; true if a triangle of it is. The point is
 * given as seen from the first voxel of the tile. */
DEVICE int look(const Heart *h, const Table *table, int tile, int cell, float x, float y, float z, float *best) {
    int code = h->config[tile][cell], found = 0;
    x -= SX * (cell >> 3), y -= SY * (cell >> 1 & 3), z -= SZ * (cell & 1);
    if (to_box(table->extent + code, x, y, z) >= *best) return 0;
    for (int k = 0; k < table->count[code]; k++) {
        float squared = to_triangle(table->triangle[code][k], x, y, z);
        if (squared < *best) *best = squared, found = 1;
    }
    return found;
}

/* A cell that cannot be far: the first one of the tile whose box is nearest, in the block whose box is. */
DEVICE int begin(const Heart *h, float x, float y, float z) {
    int block = -1, tile = -1;
    float best = FAR_AWAY * FAR_AWAY;
    for (int b = 0; b < BLOCKS; b++) {
        float squared = h->tiles[b] ? to_box(h->block_box + b, x, y, z) : best;
        if (squared < best) best = squared, block = b;
    }
    if (block < 0) return -1;
    best = FAR_AWAY * FAR_AWAY;
    for (unsigned long long tiles = h->tiles[block]; tiles; tiles &= tiles - 1) {
        int n = __ffsll(tiles) - 1, i = 4 * (block / (BLOCKS_Y * BLOCKS_Z)) + (n >> 4);
        int j = 4 * (block / BLOCKS_Z % BLOCKS_Y) + (n >> 2 & 3), k = 4 * (block % BLOCKS_Z) + (n & 3);
        int t = (i * TILES_Y + j) * TILES_Z + k;
        float squared = to_box(h->tile_box + t, x, y, z);
        if (squared < best) best = squared, tile = t;
    }
    return tile * 32 + __ffs(h->cells[tile]) - 1;
}

/* Squared distance to the surface, beginning with cell `*nearest` (as in `seed`), which becomes the nearest one. Blocks
 * that are too far in one axis or two are passed over by whole slabs and columns. */
DEVICE float search(const Heart *h, const Table *table, float x, float y, float z, int *nearest) {
    float best = FAR_AWAY * FAR_AWAY;
    int first = *nearest >> 5, fi = first / (TILES_Y * TILES_Z), fj = first / TILES_Z % TILES_Y, fk = first % TILES_Z;
    look(h, table, first, *nearest & 31, x - SX * (4 * fi - 1), y - SY * (4 * fj - 1), z - SZ * (2 * fk - 1), &best);
    for (int i = 0; i < BLOCKS_X; i++) {
        float dx = outside(SX * (16 * i - 1), SX * (16 * i + 15), x);
        if (dx * dx >= best) continue;
        for (int j = 0; j < BLOCKS_Y; j++) {
            float dy = outside(SY * (16 * j - 1), SY * (16 * j + 15), y);
            if (dx * dx + dy * dy >= best) continue;
            for (int k = 0; k < BLOCKS_Z; k++) {
                int block = (i * BLOCKS_Y + j) * BLOCKS_Z + k;
                unsigned long long tiles = h->tiles[block];
                if (!tiles || to_box(h->block_box + block, x, y, z) >= best) continue;
                for (; tiles; tiles &= tiles - 1) {
                    int n = __ffsll(tiles) - 1, ti = 4 * i + (n >> 4), tj = 4 * j + (n >> 2 & 3), tk = 4 * k + (n & 3);
                    int tile = (ti * TILES_Y + tj) * TILES_Z + tk;
                    if (to_box(h->tile_box + tile, x, y, z) >= best) continue;
                    float tx = x - SX * (4 * ti - 1), ty = y - SY * (4 * tj - 1), tz = z - SZ * (2 * tk - 1);
                    for (unsigned cells = h->cells[tile]; cells; cells &= cells - 1) {
                        int cell = __ffs(cells) - 1;
                        if (look(h, table, tile, cell, tx, ty, tz, &best)) *nearest = tile * 32 + cell;
                    }
                }
            }
        }
    }
    return best;
}

/* Place of a thread among things of which each warp takes 4 x 4 x 2; there are so many warps along y and z. */
DEVICE void in_warp(int t, int along_y, int along_z, int *i, int *j, int *k) {
    int warp = t / 32;
    *i = 4 * (warp / (along_y * along_z)) + (t >> 3 & 3);
    *j = 4 * (warp / along_z % along_y) + (t >> 1 & 3);
    *k = 2 * (warp % along_z) + (t & 1);
}

/* One thread a voxel. Planes of the network to planes of the grid, by the two `weights` (rows, Z, 2) of each from plane
 * `below` (rows, Z) on; `states` (rows, 2) tells whether any voxel is wall, and whether any number was none. */
KERNEL resample(int rows, const float *probability, const int *below, const float *weights, float *walls,
                Heart *hearts, int *states) {
    int t = THREAD;
    if (t >= rows * VOXELS) return;
    int row = t / VOXELS, k = t % Z, plane = row * Z + k;
    const float *planes = probability + (size_t)(t / Z) * PLANES;
    float value = planes[below[plane]] * weights[2 * plane] + planes[below[plane] + 1] * weights[2 * plane + 1];
    walls[t] = value;
    hearts[row].mask[t % VOXELS] = value >= 0.5f;
    if (value >= 0.5f) states[2 * row] = 1; /* whichever thread writes, it writes the same */
    for (int p = k; p < PLANES; p += Z)
        if (!(fabsf(planes[p]) <= GREATEST)) states[2 * row + 1] = 1;
}

/* One thread a tile: configurations of its cells and the box around their triangles. */
KERNEL mark_tiles(int rows, Heart *hearts, const Table *table) {
    int t = THREAD;
    if (t >= rows * TILES) return;
    int tile = t % TILES;
    unsigned held = 0;
    Heart *h = hearts + t / TILES;
    Box box;
    clear(&box);
    for (int cell = 0; cell < 32; cell++) {
        int i = 4 * (tile / (TILES_Y * TILES_Z)) + (cell >> 3), j = 4 * (tile / TILES_Z % TILES_Y) + (cell >> 1 & 3);
        int k = 2 * (tile % TILES_Z) + (cell & 1), code = 0;
        for (int corner = 0; corner < 8; corner++) { /* the voxels around the grid are empty */
            int x = i - 1 + (corner >> 2), y = j - 1 + (corner >> 1 & 1), z = k - 1 + (corner & 1);
            int within = x >= 0 && x < X && y >= 0 && y < Y && z >= 0 && z < Z;
            if (within && h->mask[(x * Y + y) * Z + z]) code |= 1 << corner;
        }
        h->config[tile][cell] = (unsigned char)code;
        if (!table->count[code]) continue;
        held |= 1u << cell;
        join(&box, table->extent + code, SX * (i - 1), SY * (j - 1), SZ * (k - 1));
    }
    h->cells[tile] = held;
    h->tile_box[tile] = box;
}

/* One thread a block: which of its tiles hold triangles, and the box around them. */
KERNEL mark_blocks(int rows, Heart *hearts) {
    int t = THREAD;
    if (t >= rows * BLOCKS) return;
    int block = t % BLOCKS;
    unsigned long long held = 0;
    Heart *h = hearts + t / BLOCKS;
    Box box;
    clear(&box);
    for (int n = 0; n < 64; n++) {
        int i = 4 * (block / (BLOCKS_Y * BLOCKS_Z)) + (n >> 4), j = 4 * (block / BLOCKS_Z % BLOCKS_Y) + (n >> 2 & 3);
        int k = 4 * (block % BLOCKS_Z) + (n & 3), tile = (i * TILES_Y + j) * TILES_Z + k;
        if (i >= TILES_X || j >= TILES_Y || k >= TILES_Z || !h->cells[tile]) continue;
        held |= 1ull << n;
        join(&box, h->tile_box + tile, 0.f, 0.f, 0.f);
    }
    h->tiles[block] = held;
    h->block_box[block] = box;
}

/* One thread a brick, a warp a group: where the searches of the brick's voxels begin. */
KERNEL seed_bricks(int rows, Heart *hearts, const Table *table) {
    int t = THREAD;
    if (t >= rows * GROUPS * 32) return;
    int i, j, k;
    in_warp(t % (GROUPS * 32), GROUPS_Y, GROUPS_Z, &i, &j, &k);
    if (i >= BRICKS_X || j >= BRICKS_Y || k >= BRICKS_Z) return;
    Heart *h = hearts + t / (GROUPS * 32);
    float x = SX * (4 * i + 1.5f), y = SY * (4 * j + 1.5f), z = SZ * (2 * k + 0.5f);
    int nearest = begin(h, x, y, z);
    if (nearest >= 0) search(h, table, x, y, z, &nearest);
    h->seed[(i * BRICKS_Y + j) * BRICKS_Z + k] = nearest;
}

/* One thread a voxel, a warp a brick: signed distances, mm, negative in the mask; 0 where there is no surface. */
KERNEL measure(int rows, const Heart *hearts, const Table *table, float *distance) {
    int t = THREAD;
    if (t >= rows * BRICKS * 32) return;
    int row = t / (BRICKS * 32), i, j, k;
    in_warp(t % (BRICKS * 32), BRICKS_Y, BRICKS_Z, &i, &j, &k);
    if (i >= X || j >= Y || k >= Z) return;
    const Heart *h = hearts + row;
    int nearest = h->seed[t / 32 % BRICKS], voxel = (i * Y + j) * Z + k;
    float found = nearest < 0 ? 0.f : sqrtf(search(h, table, SX * i, SY * j, SZ * k, &nearest));
    distance[(size_t)row * VOXELS + voxel] = h->mask[voxel] ? -found : found;
}

/* One thread in all: bytes of a heart and of the table, threads that a heart takes in each of the kernels above. */
KERNEL sizes(int *out) {
    const int all[] = {sizeof(Heart), sizeof(Table), VOXELS, TILES, BLOCKS, GROUPS * 32, BRICKS * 32};
    for (int i = 0; i < 7; i++) out[i] = all[i];
}
