-- receiver, id, bytes -> the waiting rows above the id, oldest first, up to so many bytes of packets; each
-- with its number of waiting messages
local key, from, left, at_once = p .. 'mail:' .. ARGV[1], '(' .. ARGV[2] .. '\2', tonumber(ARGV[3]), 50
local answer = {}
while left > 0 do
    local entries = redis.call('ZRANGE', key, from, '+', 'BYLEX', 'LIMIT', 0, at_once)
    for _, entry in ipairs(entries) do
        if left <= 0 then
            break
        end
        local id = string.sub(entry, 1, 8)
        local row = row_of(pair_of(struct.unpack('>I4', entry, 10), tonumber(ARGV[1])), id)
        table.insert(answer, row)
        table.insert(answer, waiting_of(id))
        left = left - (#row - HEAD_BYTES)
        from = '(' .. entry
    end
    if #entries < at_once then
        break
    end
end
return answer
